"""`lorabench estimate`: memory, speed and cost of a recipe, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from lorabench.cli.comparison import show_comparison
from lorabench.cli.first_screen import (
    FURTHER,
    answer,
    figures,
    figures_first,
    headline,
    memory_bar,
    paragraph,
    speed_figures,
)
from lorabench.cli.listing import FORMATS, Column, as_csv, as_json, as_markdown, as_table, folded
from lorabench.cli.output import show, show_styled
from lorabench.cli.parameters import Listed, OneOf, alloc_conf_option
from lorabench.cli.recipe_options import from_option, recipe_options
from lorabench.cli.speed import calibration_for, refuse_speed_without_rates, shares_of_time, speed_options
from lorabench.cli.tracing import import_training_libraries, progress
from lorabench.cli.verbosity import let_libraries_speak
from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import printable_lines
from lorabench.estimator.memory.breakdown import COMPONENTS
from lorabench.estimator.quantities import GIB, in_gib, range_in_gib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lorabench.estimator.answers.estimates import Estimate
    from lorabench.estimator.devices.device import Device
    from lorabench.estimator.explanation import Explanation
    from lorabench.estimator.imported.reading import Imported
    from lorabench.estimator.memory.allocator_settings import AllocatorSettings
    from lorabench.estimator.memory.breakdown import Breakdown
    from lorabench.estimator.models.spec import ModelSpec
    from lorabench.estimator.recipes.parameters import ParameterCounts
    from lorabench.estimator.recipes.recipe import Recipe

EXAMPLES = """\
\b
Examples:
  lorabench estimate llama-3.1-8b --gpu rtx-4090
  lorabench estimate llama-3.1-8b --gpu rtx-4090,l40s,h100-sxm --rank 8,64
  lorabench estimate llama-3.1-8b --gpu l40s --tokens 50M --price-per-hour 0.8
  lorabench estimate Qwen/Qwen2.5-7B -r 64 --target-modules mlp --seq-len 4096
  lorabench estimate ./config.json --method full --gpu 80GB --require-fit
  lorabench estimate llama-3.1-8b --method qlora --explain
  lorabench estimate --from axolotl.yml --gpu rtx-4090 --seq-len 4096
"""
LISTED = ("method", "rank", "batch_size", "seq_len")
"""Recipe options that may be lists."""


@click.command("estimate", epilog=EXAMPLES)
@click.argument("model", required=False)
@from_option
@recipe_options({"method": "full, lora and qlora side by side"}, listed=LISTED)
@click.option("--gpu", type=Listed(click.STRING), help="GPU to fit: a name, a memory size such as 24GB, or local.")
@speed_options
@click.option("--require-fit", is_flag=True, help="Exit with code 1 if nothing that is estimated fits.")
@click.option(
    "--no-replay", is_flag=True, help="Give reserved memory as a range instead of replaying CUDA's allocator: faster."
)
@alloc_conf_option
@click.option("--explain", is_flag=True, help="Show the derivation term by term, with this recipe's numbers.")
@click.option("--format", "format_", type=OneOf(FORMATS), default="table", help="Output format. [table]")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    callback=let_libraries_speak,
    help="Print every setting and term too, and the libraries' output to standard error.",
)
def command(
    model: str | None,
    config: Path | None,
    gpu: str | tuple[str, ...] | None,
    tokens: int | None,
    price_per_hour: float | None,
    calibration_file: Path | None,
    require_fit: bool,
    explain: bool,
    no_replay: bool,
    alloc_conf: AllocatorSettings | None,
    format_: str,
    verbose: bool,
    **options: Any,
) -> int:
    """Estimate memory, speed and cost of fine-tuning MODEL, without torch.

    MODEL is a name of `lorabench models`, a config.json or its folder, or a hub id; or, as after --from, the config of
    another tool. Without --method, full fine-tuning, LoRA and QLoRA are laid side by side, each with the options that
    apply to it. --gpu, --method, --rank, --batch-size and --seq-len take lists such as 8,64, and each combination is a
    row.

    The estimate takes milliseconds. A replay of CUDA's allocator, for reserved memory and the verdict, takes some
    tenths of a second more; more than 6 rows get ranges instead. An architecture without a closed form is traced, which
    needs torch and takes some seconds. Defaults are in brackets; rank, alpha and dropout are TRL's. If MODEL does not
    support a default, the usual alternative is used and reported.
    """
    from lorabench.estimator.answers.comparison import combinations, compare
    from lorabench.estimator.answers.estimates import estimate_recipe, with_training
    from lorabench.estimator.memory.allocator_settings import settings_of_environment
    from lorabench.estimator.models.read_config import has_closed_form

    if require_fit and gpu is None:
        raise UserError("--require-fit needs a GPU: add --gpu NAME or a size such as --gpu 24GB")
    if explain and format_ == "csv":
        raise UserError("--explain does not fit into one csv row: use --format table, markdown or json")
    if no_replay and alloc_conf is not None:
        raise UserError("--alloc-conf sets the allocator, which --no-replay does not replay: leave one of them out")
    allocator = alloc_conf or settings_of_environment()
    found = combinations(model, config, options)
    devices = _devices(gpu)
    for one in devices or (None,):
        refuse_speed_without_rates(one, tokens, price_per_hour, calibration_file)
    gpus = [(one, calibration_for(one, calibration_file)) for one in devices]
    spec = found[0].asked.spec
    if not has_closed_form(spec):
        if no_replay:
            raise UserError(f"--no-replay needs a closed form, and model_type {spec.model_type} has none: leave it out")
        _refuse_what_takes_a_closed_form(spec, explain, tokens, calibration_file)
        with progress() as say:
            say("importing torch, transformers and peft")
            import_training_libraries(f"an estimate of model_type {spec.model_type}")
    if len(found) * max(1, len(gpus)) > 1:
        for given, option in ((explain, "--explain"), (verbose, "-v")):
            if given:
                raise UserError(f"{option} is for one estimate: add --method full, lora or qlora, and no lists")
        with progress() as say:
            comparison = compare(
                found,
                gpus,
                say,
                replay=not no_replay,
                allocator=allocator,
                tokens=tokens,
                price_per_hour=price_per_hour,
            )
        show_comparison(comparison, format_, replay=not no_replay)
        return 1 if require_fit and not any(one.fits for one in comparison.estimates) else 0
    wanted = found[0].asked
    resolved = wanted.resolved()
    device, calibration = gpus[0] if gpus else (None, None)
    with progress() as say:
        estimate = estimate_recipe(resolved, device, calibration, say, replay=not no_replay, allocator=allocator)
    estimate = with_training(replace(estimate, imported=wanted.imported), tokens, price_per_hour)
    if format_ == "table":
        show_styled(as_text(estimate, details=verbose or explain))
    elif not explain:
        show(_FORMATTERS[format_](estimate))
    if explain:
        from lorabench.estimator.explanation import explain as explain_memory

        is_replayed = estimate.memory.peak_reserved_range_bytes is None
        explanation = explain_memory(resolved, device=device, replayed=estimate if is_replayed else None)
        show(_explained(estimate, explanation, format_))
    return 1 if require_fit and not estimate.fits else 0


def _devices(gpu: str | tuple[str, ...] | None) -> list[Device]:
    if gpu is None:
        return []
    from lorabench.estimator.devices.device import find_device  # not needed without a GPU

    return [find_device(name) for name in ([gpu] if isinstance(gpu, str) else gpu)]


def _refuse_what_takes_a_closed_form(
    spec: ModelSpec, explain: bool, tokens: int | None, calibration_file: Path | None
) -> None:
    if explain:
        raise UserError(
            f"--explain needs a closed form, and model_type {spec.model_type} has none: leave it out, "
            "or run lorabench trace, which lists the tensors at the peak"
        )
    if tokens is not None or calibration_file is not None:
        option = "--calibration" if tokens is None else "--tokens"
        raise UserError(
            f"{option} needs a speed estimate, which needs a closed form, and model_type {spec.model_type} has none: "
            "leave it out"
        )


def as_text(estimate: Estimate, *, details: bool = True) -> str:
    """Return the estimate for a terminal: the answer first. ``details``: then all settings, terms and tables.

    It is printable, but for the colours of the bar on a terminal.
    """
    paragraphs = [
        *figures_first(estimate),
        *remarks(estimate.assumptions, estimate.warnings),
        *_source(estimate),
        *not_taken_into_account(estimate.imported),
    ]
    if not details:
        paragraphs.append(paragraph([FURTHER]))
    else:
        if estimate.throughput is not None:
            paragraphs.append(paragraph([shares_of_time(estimate.throughput)]))
        paragraphs += [
            describe_recipe(estimate.recipe),
            parameter_counts(estimate.parameters),
            as_table(_state_columns(estimate)),
            as_table(peak_columns(estimate.memory)),
        ]
    return "\n\n".join([printable_lines(headline(estimate)), memory_bar(estimate), *map(printable_lines, paragraphs)])


def describe_recipe(recipe: Recipe) -> str:
    """Return the whole recipe, on lines that fit a terminal of 80 columns."""
    settings = recipe.describe()
    model, method = settings.pop("model"), settings.pop("method")
    listed = " ".join(f"{name}={value}" for name, value in settings.items())
    return "\n".join([f"{model}: {method}", *folded(listed, indent="  ", hanging="  ")])


def usable_of(memory_bytes: int, usable_bytes: int) -> str:
    """Return the part of a GPU's memory that a process can use: 23.24 of 23.99 GiB usable."""
    return f"{usable_bytes / GIB:,.2f} of {in_gib(memory_bytes)} usable"


def remarks(assumptions: Sequence[str], warnings: Sequence[str], *, markdown: bool = False) -> list[str]:
    """Return each assumption, then each warning, as a paragraph for a terminal or in Markdown."""
    if markdown:
        return [f"**Assumed**: {one}" for one in assumptions] + [f"**Warning**: {one}" for one in warnings]
    lines = [f"assumed: {one}" for one in assumptions] + [f"warning: {one}" for one in warnings]
    return ["\n".join(folded(line)) for line in lines]


def not_taken_into_account(imported: Imported | None, *, markdown: bool = False) -> list[str]:
    """Return a paragraph on the config of another tool, with the keys that the answer leaves out; none without one."""
    if imported is None:
        return []
    left = [str(each) for each in imported.not_taken_into_account]
    if markdown:
        return ["\n".join([imported.headline, *(f"- {one}" for one in left)])]
    lines = folded(imported.headline)
    for one in left:
        lines += folded(one, indent="  ", hanging="    ")
    return ["\n".join(lines)]


def parameter_counts(counts: ParameterCounts) -> str:
    """Return the numbers of all, trainable and quantised parameters, in at most two lines."""
    counted = f"{counts.total:,} parameters: {counts.trainable:,} trainable ({counts.trainable / counts.total:.2%})"
    if counts.quantized:
        counted += f", {counts.quantized:,} in 4 bits"
    return "\n".join(folded(counted, hanging="  "))


def _source(estimate: Estimate) -> list[str]:
    if estimate.source == "closed form":
        return []
    return ["Traced, because this architecture has no closed form."]


def _state_columns(estimate: Estimate) -> list[Column]:
    terms = estimate.states
    return [
        Column("persistent memory", [term.what for term in terms], right=False, folds=True),
        Column("elements", [f"{term.elements:,}" for term in terms]),
        Column("B each", [f"{term.bytes_per_element:.6g}" for term in terms]),
        Column("bytes", [f"{term.bytes:,}" for term in terms]),
        Column("", [in_gib(term.bytes) for term in terms]),
    ]


def peak_columns(memory: Breakdown) -> list[Column]:
    """Return the breakdown of the peak, then reserved memory and device total."""
    rows = [(name, bytes_, COMPONENTS[name]) for name, bytes_ in memory.components.items() if bytes_]
    counter = "most of tensors at once" if memory.peak_reserved_bytes is None else "torch.cuda.max_memory_allocated"
    rows.append(("peak allocated", memory.peak_allocated_bytes, counter))
    if memory.peak_reserved_bytes is not None:
        what = "torch.cuda.max_memory_reserved"
        if memory.peak_reserved_range_bytes is not None:
            what = f"{range_in_gib(*memory.peak_reserved_range_bytes)}, depending on fragmentation"
        else:
            what += "; allocator replayed"
            if memory.allocator_settings:
                what += f" with {memory.allocator_settings}"
        rows.append(("peak reserved", memory.peak_reserved_bytes, what))
    if memory.device_total_bytes is not None:
        what = "in nvidia-smi, with CUDA context"
        if memory.device_total_range_bytes is not None:
            what = f"{range_in_gib(*memory.device_total_range_bytes)} {what}"
        rows.append(("device total", memory.device_total_bytes, what))
    if memory.paged_states_bytes:
        what = "in unified memory; nvidia-smi counts those on the GPU besides"
        rows.append(("paged states", memory.paged_states_bytes, what))
    return [
        Column(f"peak in {memory.phase}", [name.replace("_", " ") for name, _, _ in rows], right=False),
        Column("", [in_gib(bytes_) for _, bytes_, _ in rows]),
        Column("", [what for _, _, what in rows], right=False, folds=True),
    ]


def _as_markdown(estimate: Estimate) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in estimate.recipe.describe().items() if name != "model")
    more = [*figures(estimate), *speed_figures(estimate)]
    if estimate.throughput is not None:
        more.append(shares_of_time(estimate.throughput))
    parts = [
        f"**{answer(estimate)}**",
        *(["\n".join(f"- {line}" for line in more)] if more else []),
        f"**{estimate.recipe.model}**: {settings}",
        *remarks(estimate.assumptions, estimate.warnings, markdown=True),
        " ".join(parameter_counts(estimate.parameters).split()),
        *_source(estimate),
        as_markdown(_state_columns(estimate)),
        as_markdown(peak_columns(estimate.memory)),
    ]
    parts += not_taken_into_account(estimate.imported, markdown=True)
    return "\n\n".join(parts)


def _explained(estimate: Estimate, explanation: Explanation, format_: str) -> str:
    """Return the derivation; in formats other than tables, after the estimate."""
    import msgspec

    from lorabench.cli.explanation import explanation_as_markdown, explanation_as_text

    if format_ == "json":
        return as_json({**msgspec.to_builtins(estimate), "explanation": explanation})
    if format_ == "markdown":
        return f"{_as_markdown(estimate)}\n\n{explanation_as_markdown(explanation)}"
    return f"\n{explanation_as_text(explanation)}"


def csv_row(estimate: Estimate) -> dict[str, Any]:
    """Return the row of a CSV file: the recipe as people write it, the counts, each component in bytes."""
    from lorabench.estimator.answers.flat import flat

    return {**flat(estimate), **estimate.recipe.describe()}


def _as_csv(estimate: Estimate) -> str:
    return as_csv([csv_row(estimate)])


_FORMATTERS: dict[str, Callable[[Estimate], str]] = {
    "table": as_text,
    "json": as_json,
    "markdown": _as_markdown,
    "csv": _as_csv,
}
