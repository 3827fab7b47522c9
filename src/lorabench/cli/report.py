"""`lorabench report`: make one HTML page of results or of estimates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorabench.cli.listing import folded
from lorabench.cli.output import show
from lorabench.cli.parameters import NamedPath, OneOf
from lorabench.cli.verbosity import verbose_option
from lorabench.estimator.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorabench.estimator.devices.device import Device
    from lorabench.estimator.models.spec import ModelSpec
    from lorabench.reports.runs import Run

EXAMPLES = """\
\b
Examples:
  lorabench report results -o report.html --open
  lorabench report results --model llama-3.1-8b --gpu h200
  lorabench report results --format csv -o results.csv
  lorabench report --model meta-llama/Llama-3.1-8B --gpu rtx-4090 -o page.html
"""


@click.command(name="report", epilog=EXAMPLES)
@click.argument("folders", metavar="[RESULTS_DIR]…", nargs=-1, type=NamedPath())
@click.option("--model", "models", multiple=True, help="Add estimates of this model. Repeatable.")
@click.option("--gpu", "gpus", multiple=True, help="Select this GPU first. Repeatable.")
@click.option("--trace", "with_traces", is_flag=True, help="Trace each recipe too: seconds each, needs torch.")
@click.option("-o", "--output", type=NamedPath(), help="Write to this file. [report.html, report.csv]")
@click.option(
    "--format",
    "format_",
    type=OneOf(("html", "csv")),
    default="html",
    help="html: the page; csv: a row for each run record. [html]",
)
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@verbose_option
def command(
    folders: tuple[Path, ...],
    models: tuple[str, ...],
    gpus: tuple[str, ...],
    with_traces: bool,
    output: Path | None,
    format_: str,
    open_page: bool,
) -> None:
    """Make one HTML page of the results of `lorabench run`, or of estimates alone.

    The page needs no network and sends nothing. It also lists failed runs, with their messages. Its sections "what
    fits" and "what if" cover the models that ran, the models of --model, and all GPUs of `lorabench gpus`.
    """
    from lorabench.estimator.recipes.defaults import recipe_for
    from lorabench.reports.page import render_report, write_page
    from lorabench.reports.quantities import format_bytes, plural
    from lorabench.reports.runs import read_runs

    if format_ == "csv":
        for given, option in ((models, "--model"), (gpus, "--gpu"), (with_traces, "--trace"), (open_page, "--open")):
            if given:
                raise UserError(f"{option} is for the page: leave it out with --format csv")
        _write_csv(folders, output or Path("report.csv"))
        return
    output = output or Path("report.html")
    if not folders and not models:
        raise UserError("nothing to report: name folders of results, or a model with --model NAME")
    if with_traces and not folders:
        raise UserError("--trace needs results: name folders of results, or run lorabench trace MODEL")
    specs, devices = with_closed_form(models), _devices(gpus)
    runs = read_runs(folders) if folders else []
    if with_traces:
        runs = _traced(runs)
    size = write_page(render_report(runs, specs, devices), output)
    failed = sum(run.record.outcome != "ok" for run in runs)
    contents = [f"{plural(len(runs), 'run')}, {failed} failed"] if runs else []
    if specs:
        contents.append(f"estimates of {', '.join(spec.name for spec in specs)}")
    assumptions = [assumed for spec in specs for assumed in recipe_for(spec).assumptions]
    assumptions += [assumed for device in devices for assumed in device.assumptions]
    for assumption in assumptions:
        show("\n".join(folded(f"assumed: {assumption}")))
    show(f"wrote {output} ({format_bytes(size)}): {'; '.join(contents)}")
    if open_page:
        import webbrowser

        if not webbrowser.open(output.resolve().as_uri()):
            show("no browser found to open the page", err=True)


def _write_csv(folders: Sequence[Path], output: Path) -> None:
    from lorabench.bench.records.flat import flat
    from lorabench.bench.records.record import read_records
    from lorabench.cli.listing import as_csv
    from lorabench.estimator.recipes.recipe import with_all_settings
    from lorabench.reports.page import write_page

    if not folders:
        raise UserError("nothing to report: name folders of results")
    records = [(folder, record) for folder in folders for record in read_records(folder)]
    rows = with_all_settings(flat(record) for _, record in records)
    text = as_csv([{"folder": str(folder), **row} for (folder, _), row in zip(records, rows, strict=True)])
    write_page(f"{text}\n", output)
    show(f"wrote {output}: {len(rows)} runs")


def _traced(runs: Sequence[Run]) -> list[Run]:
    from lorabench.cli.tracing import import_training_libraries, progress
    from lorabench.reports.traces import add_traces

    import_training_libraries("--trace")
    with progress() as say:
        traced, refused = add_traces(runs, say)
    for reason in refused:
        show(f"not traced: {reason}", err=True)
    return traced


def with_closed_form(names: Sequence[str]) -> list[ModelSpec]:
    """Return the models of that ``names``.

    Raises:
        UserError: as in `find_model`; or a model has no closed form.
    """
    from lorabench.estimator.models.catalogue import find_model
    from lorabench.estimator.models.read_config import has_closed_form, no_closed_form

    specs = [find_model(name) for name in names]
    for spec in specs:
        if not has_closed_form(spec):
            raise UserError(
                f"--model {spec.name}: {no_closed_form(spec.model_type)}, which estimates on the page need: "
                "leave it out, or run lorabench estimate"
            )
    return specs


def _devices(names: tuple[str, ...]) -> list[Device]:
    from lorabench.estimator.devices.device import find_device

    return [find_device(name) for name in names]
