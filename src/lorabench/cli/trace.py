"""`lorabench trace`: run the real training step on meta tensors and follow every allocation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorabench.cli.estimate import describe_recipe, not_taken_into_account, parameter_counts, peak_columns, remarks
from lorabench.cli.listing import FORMATS, Column, as_csv, as_json, as_markdown, as_table, folded
from lorabench.cli.output import show
from lorabench.cli.parameters import OneOf, alloc_conf_option
from lorabench.cli.recipe_options import from_option, recipe_options
from lorabench.cli.tracing import progress
from lorabench.cli.verbosity import verbose_option
from lorabench.estimator.quantities import in_gib

if TYPE_CHECKING:
    from pathlib import Path

    from lorabench.estimator.memory.allocator_settings import AllocatorSettings
    from lorabench.estimator.trace.trace import Trace

EXAMPLES = """\
\b
Examples:
  lorabench trace llama-3.1-8b --method qlora
  lorabench trace Qwen/Qwen2.5-7B -r 64 --alloc-conf expandable_segments:True
  lorabench trace ./config.json --method full --format json > trace.json
"""
SHOWN_TENSORS = 10
"""Number of tensors in the table; JSON has more."""


@click.command("trace", epilog=EXAMPLES)
@click.argument("model", required=False)
@from_option
@recipe_options()
@click.option(
    "--backend",
    type=OneOf(("cuda", "cpu")),
    default="cuda",
    help="Trace the allocations of a step on CUDA or on a CPU. [cuda]",
)
@click.option("--gpu", help="GPU whose kernels' scratch memory is counted, by name (lorabench gpus).")
@alloc_conf_option
@click.option("--format", "format_", type=OneOf(FORMATS), default="table", help="Output format. [table]")
@verbose_option
def command(
    model: str | None,
    config: Path | None,
    backend: Any,
    gpu: str | None,
    alloc_conf: AllocatorSettings | None,
    format_: str,
    **options: Any,
) -> None:
    """Run the real training step of MODEL on meta tensors, without a GPU.

    transformers, peft and bitsandbytes train two steps on tensors without contents, and every allocation is followed.
    MODEL is a name of `lorabench models`, a config.json or its folder, or a hub id; or, as after --from, the config of
    another tool. Defaults are in brackets. If MODEL
    does not support a default, the usual alternative is used and reported.
    """
    from lorabench.commands import trace

    with progress() as say:
        traced = trace(
            model,
            from_file=config,
            backend=backend,
            gpu=gpu,
            alloc_conf=alloc_conf,
            on_progress=say,
            **options,
        )
    show(_FORMATTERS[format_](traced))


def _as_text(traced: Trace) -> str:
    return "\n\n".join(
        [
            describe_recipe(traced.recipe),
            *remarks(traced.assumptions, traced.warnings),
            parameter_counts(traced.parameters),
            as_table(peak_columns(traced.memory)),
            "\n".join(folded(_moment(traced))),
            _tensor_list(traced),
            as_table(_phase_columns(traced)),
            *not_taken_into_account(traced.imported),
        ]
    )


def _tensor_list(traced: Trace) -> str:
    """Return the largest tensors, two lines each: names of modules and operators are too long for columns."""
    tensors = traced.tensors[:SHOWN_TENSORS]
    heads = as_table(
        [
            Column("", [in_gib(tensor.bytes) for tensor in tensors]),
            Column("", [tensor.component.replace("_", " ") for tensor in tensors], right=False),
            Column("", [f"{tensor.count} of" for tensor in tensors]),
            Column("", [_shape(tensor.shape) for tensor in tensors], right=False),
            Column("", [tensor.dtype for tensor in tensors], right=False),
        ]
    ).splitlines()[-len(tensors) :]
    origins = (" of ".join(filter(None, (tensor.operator, tensor.module))) for tensor in tensors)
    indent = " " * 10
    return "\n".join(
        line
        for head, origin in zip(heads, origins, strict=True)
        for line in (head, *folded(origin, indent=indent, hanging=indent))
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def _moment(traced: Trace) -> str:
    peak = traced.peak
    where = f" of {peak.module}" if peak.module else ""
    return f"The peak is in {peak.phase}, while {peak.operator}{where} runs. Largest live tensors:"


def _tensor_columns(traced: Trace) -> list[Column]:
    tensors = traced.tensors[:SHOWN_TENSORS]
    return [
        Column("component", [tensor.component.replace("_", " ") for tensor in tensors], right=False),
        Column("module", [tensor.module for tensor in tensors], right=False),
        Column("made by", [tensor.operator for tensor in tensors], right=False),
        Column("shape", [_shape(tensor.shape) for tensor in tensors], right=False),
        Column("dtype", [tensor.dtype for tensor in tensors], right=False),
        Column("count", [str(tensor.count) for tensor in tensors]),
        Column("", [in_gib(tensor.bytes) for tensor in tensors]),
    ]


def _phase_columns(traced: Trace) -> list[Column]:
    peaks = traced.memory.phase_peaks_bytes
    return [
        Column("phase", list(peaks), right=False),
        Column("peak", [in_gib(bytes_) for bytes_ in peaks.values()]),
    ]


def _as_markdown(traced: Trace) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in traced.recipe.describe().items() if name != "model")
    return "\n\n".join(
        [
            f"**{traced.recipe.model}**: {settings}",
            *remarks(traced.assumptions, traced.warnings, markdown=True),
            " ".join(parameter_counts(traced.parameters).split()),
            as_markdown(peak_columns(traced.memory)),
            _moment(traced),
            as_markdown(_tensor_columns(traced)),
            as_markdown(_phase_columns(traced)),
            *not_taken_into_account(traced.imported, markdown=True),
        ]
    )


def _as_csv(traced: Trace) -> str:
    """Return one row: the recipe, parameter counts, bytes of each component, and the operation at the peak."""
    memory = traced.memory
    return as_csv(
        [
            {
                **traced.recipe.describe(),
                "kernels": traced.backend,
                "assumptions": "; ".join(traced.assumptions),
                "warnings": "; ".join(traced.warnings),
                **({} if traced.imported is None else {"not_taken": "; ".join(traced.imported.remarks())}),
                "total_parameters": traced.parameters.total,
                "trainable_parameters": traced.parameters.trainable,
                "quantized_parameters": traced.parameters.quantized,
                **{f"{name}_bytes": bytes_ for name, bytes_ in memory.components.items()},
                "phase": memory.phase,
                "peak_allocated_bytes": memory.peak_allocated_bytes,
                "peak_reserved_bytes": memory.peak_reserved_bytes,
                "device_total_bytes": memory.device_total_bytes,
                "peak_module": traced.peak.module,
                "peak_operator": traced.peak.operator,
            }
        ]
    )


_FORMATTERS = {"table": _as_text, "json": as_json, "markdown": _as_markdown, "csv": _as_csv}
