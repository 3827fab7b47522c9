"""`lorabench check`: hold results against a baseline, or against the estimate."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from lorabench.bench.check.adoption import adopt
from lorabench.bench.check.allowances import allow as let_pass
from lorabench.bench.check.allowances import read_allowance
from lorabench.bench.check.baseline import compare
from lorabench.bench.check.estimate import compare_with_estimate
from lorabench.bench.check.findings import EXIT_CODES, Comparison
from lorabench.bench.check.thresholds import Thresholds, with_shares
from lorabench.bench.records.record import RunRecord, read_records
from lorabench.cli.check_formats import FORMATS, as_markdown, as_text
from lorabench.cli.parameters import NamedPath, OneOf, Share
from lorabench.estimator.errors import UserError

EXAMPLES = """\
\b
Examples:
  lorabench check results --baseline baseline
  lorabench check results --baseline baseline --format markdown > comment.md
  lorabench check results --baseline baseline --speed-tolerance 10%
  lorabench check results --baseline baseline --update-baseline
  lorabench check results --against-estimate --tolerance 3%

\b
Exit codes:
  0  nothing got worse         2  wrong use or bad input
  1  something did             3  that could not be concluded
"""


TOLERANCES = {
    "memory": ("--memory-tolerance", "Rise of the allocated peak that passes."),
    "reserved": ("--reserved-tolerance", "Rise of the reserved peak that passes."),
    "nvml": ("--nvml-tolerance", "Rise of the peak in nvidia-smi that passes."),
    "speed": ("--speed-tolerance", "Rise of the step time that passes."),
    "loss": ("--loss-tolerance", "Rise of the mean loss of the last quarter of the steps that passes."),
    "loss_over_seeds": ("--loss-over-seeds-tolerance", "The same, where repeated runs tell the spread of seeds."),
    "estimate": ("--tolerance", "Departure from the estimate that passes."),
}
"""Threshold → its option, with help."""


def tolerance_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give ``command`` an option for each threshold, by the threshold's name."""
    for name, (option, told) in reversed(TOLERANCES.items()):
        default = f"{100 * getattr(Thresholds(), name):g}%"
        command = click.option(option, name, type=Share(), help=f"{told}  [default: {default}]")(command)
    return command


@click.command("check", epilog=EXAMPLES)
@click.argument("results", metavar="RESULTS_DIR", type=NamedPath())
@click.option("--baseline", metavar="BASELINE_DIR", type=NamedPath(), help="Results to hold them against.")
@click.option("--against-estimate", is_flag=True, help="Hold them against the estimate, worked out now.")
@click.option("--suite", metavar="SUITE.yaml", help="Take the thresholds from the check section of this suite.")
@tolerance_options
@click.option(
    "--allow",
    metavar="NAME=REASON",
    multiple=True,
    help="Let a known case pass: a recipe's label or digest, a metric, or LABEL:METRIC. Repeatable.",
)
@click.option("--across-devices", is_flag=True, help="Compare results of different devices.")
@click.option(
    "--update-baseline", is_flag=True, help="Make the results the new baseline, if all that got worse is allowed."
)
@click.option(
    "--format",
    "format_",
    type=OneOf(["text", "markdown", "junit", "github", "json"]),
    default="text",
    show_default=True,
    help="markdown: for a pull request; junit: XML for test collectors; github: annotations of a workflow.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    results: Path,
    baseline: Path | None,
    against_estimate: bool,
    suite: str | None,
    allow: tuple[str, ...],
    across_devices: bool,
    update_baseline: bool,
    format_: str,
    **tolerances: float | None,
) -> int:
    """Compare RESULTS_DIR with a baseline, recipe by recipe, or with the estimate.

    Memory, step time and late losses of every recipe that both folders hold, worst first. Step times count as changed
    only where they differ beyond chance too, which takes repeated runs. A tolerance is a share such as 3%, or off to
    leave the metric out; one given here wins over the suite's. A recipe that is in one folder only is listed.
    """
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    _refuse_contradictions(baseline, against_estimate, given)
    thresholds = with_shares(_thresholds_of(suite), {name: tolerances[name] for name in given & set(TOLERANCES)})
    records = read_records(results)
    if against_estimate:
        comparison = compare_with_estimate(records, thresholds)
    else:
        assert baseline is not None
        before = [] if update_baseline and not baseline.exists() else read_records(baseline)
        comparison = compare(records, before, thresholds, across_devices=across_devices)
    comparison = let_pass(comparison, [read_allowance(text, comparison) for text in allow])
    click.echo(_formatted(comparison, format_))
    if not update_baseline:
        return EXIT_CODES[comparison.verdict]
    assert baseline is not None
    return _update(comparison, records, baseline)


def _refuse_contradictions(baseline: Path | None, against_estimate: bool, given: set[str]) -> None:
    if (baseline is not None) == against_estimate:
        raise UserError("check holds results against one thing: give --baseline BASELINE_DIR or --against-estimate")
    options = {name: option for name, (option, _) in TOLERANCES.items()}
    options |= {"across_devices": "--across-devices", "update_baseline": "--update-baseline"}
    against, other = "--baseline", "--against-estimate"
    if baseline is None:
        against, other = other, against
    meaningless = given & options.keys() & ({"estimate"} if baseline is not None else options.keys() - {"estimate"})
    if meaningless:
        named = ", ".join(sorted(options[name] for name in meaningless))
        raise UserError(f"{named}: no meaning with {against}: leave it out, or check with {other}")
    if {"across_devices", "update_baseline"} <= given:
        raise UserError("--update-baseline keeps a baseline to one device: leave --across-devices out")


def _thresholds_of(suite: str | None) -> Thresholds:
    if suite is None:
        return Thresholds()
    from lorabench.bench.suites.suite_file import load_suite

    return load_suite(suite).thresholds


def _formatted(comparison: Comparison, format_: str) -> str:
    if format_ == "text" and sys.stdout.isatty():
        return as_text(comparison, color="NO_COLOR" not in os.environ)
    return FORMATS[format_](comparison)


def _update(comparison: Comparison, records: Sequence[RunRecord], baseline: Path) -> int:
    """Make ``records`` the baseline where all that got worse, or stays open, is let pass; say so on standard error."""
    code = EXIT_CODES[comparison.verdict] if comparison.recipes else 0
    if code:
        click.echo(
            f"{baseline} stays as it was: let pass what is known with --allow NAME=REASON, or measure again", err=True
        )
        return code
    adopt(records, baseline, as_markdown(comparison))
    click.echo(f"{baseline} now holds these results as the baseline", err=True)
    return 0
