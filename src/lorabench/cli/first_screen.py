"""What `lorabench estimate` prints first: the answer, what takes the memory, and what to change."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lorabench.cli.listing import folded
from lorabench.cli.memory_bar import bar, painter, parts_of
from lorabench.cli.speed import speed_lines, tokens_per_second
from lorabench.estimator.quantities import GIB, in_gib, range_in_gib

if TYPE_CHECKING:
    from lorabench.estimator.answers.estimates import Estimate

ON = {"fits": "Fits", "tight": "Tight on", "does not fit": "Does not fit"}
"""Verdict → the beginning of a sentence that a GPU's name ends."""
FURTHER = "more: -v (every term), --explain (how they follow), lorabench plan (what else)"


def answer(estimate: Estimate) -> str:
    """Return the answer in one line: whether it fits, how much of the GPU's memory it takes, and its speed."""
    memory = estimate.memory
    if estimate.gpu is None or estimate.verdict is None or estimate.gpu_usable_bytes is None:
        if memory.device_total_range_bytes is not None:
            return f"Needs {range_in_gib(*memory.device_total_range_bytes)} of a GPU's memory"
        return f"Needs {in_gib(memory.peak_reserved_bytes or memory.peak_allocated_bytes)} of memory"
    most = memory.device_total_bytes or memory.peak_allocated_bytes
    if memory.device_total_range_bytes is not None:
        most = memory.device_total_range_bytes[1]
    usable = estimate.gpu_usable_bytes
    said = f"{ON[estimate.verdict]} {estimate.gpu}: at most {most / GIB:,.2f} of {in_gib(usable)}"
    if estimate.throughput is None or estimate.verdict == "does not fit":
        return said
    return f"{said}, {tokens_per_second(estimate.throughput)}"


def figures(estimate: Estimate) -> list[str]:
    """Return what belongs to the verdict, a line each: room, limits, changes that make it fit."""
    memory, usable, margin = estimate.gpu_memory_bytes, estimate.gpu_usable_bytes, estimate.margin_bytes
    if memory is None or usable is None or margin is None:
        return []
    left = f"at least {in_gib(margin)} to spare" if margin >= 0 else f"up to {in_gib(-margin)} too large"
    if estimate.fits and margin == 0:
        left = "fits if the allocator gives cached memory back, as it does before it fails"
    room = f"{left}: {usable / GIB:,.2f} of {in_gib(memory)} are usable"
    if estimate.source == "trace":
        changes = "" if estimate.fits else "changes that make it fit, "
        return [room, f"not computed by tracing: largest batch, longest sequence, {changes}speed"]
    recipe = estimate.recipe
    batch, length, limit = estimate.largest_batch_size, estimate.longest_seq_len, estimate.max_position_embeddings
    lines = [
        room,
        f"largest batch size at length {recipe.seq_len}: {batch or 'none fits'}",
        f"longest sequence at batch size {recipe.batch_size}: {length or 'none fits'}"
        + ("" if limit is None else f" (model limit: {limit})"),
    ]
    if estimate.verdict == "tight":
        replayed = estimate.memory.peak_reserved_range_bytes is None
        lines.append(
            "whether it fits depends on the size of the CUDA context, which only the driver knows"
            if replayed
            else "to replay the allocator for this recipe, leave out --no-replay"
        )
    return lines + changes_that_fit(estimate)


def changes_that_fit(estimate: Estimate) -> list[str]:
    """Return a line for each change that makes the recipe fit; one that nothing does; none if it fits."""
    lines = []
    for change in estimate.changes:
        settings = " ".join(f"{name}={_in_words(value)}" for name, value in change.settings.items())
        lines.append(f"fits with {settings}: at most {in_gib(change.device_total_most_bytes)}")
    if not estimate.fits and not estimate.changes:
        lines.append(
            "nothing makes it fit: tried loss, checkpointing, optimizer, batch, precision, method and length, "
            "alone and in pairs"
        )
    return lines


def speed_figures(estimate: Estimate) -> list[str]:
    """Return what belongs to the speed, a line each; nothing if it is unknown."""
    if estimate.throughput is None:
        return []
    lines = speed_lines(estimate.throughput)
    if estimate.verdict == "does not fit":
        lines.insert(0, f"with enough memory: {tokens_per_second(estimate.throughput)}")
    if estimate.emulated_dtype:
        lines.append(
            f"{estimate.gpu} has no {estimate.emulated_dtype} hardware: PyTorch emulates it slowly; float16 is faster"
        )
    return lines


def memory_bar(estimate: Estimate) -> str:
    """Return the bar and its legend, coloured on a terminal."""
    usable = estimate.gpu_usable_bytes
    paint = painter(terminal=sys.stdout.isatty())
    return "\n".join(bar(parts_of(estimate.memory, usable), usable, paint))


def paragraph(lines: list[str]) -> str:
    """Return ``lines`` for a terminal of 80 columns."""
    return "\n".join(part for line in lines for part in folded(line, hanging="    "))


def headline(estimate: Estimate) -> str:
    """Return the answer, and below it what it is the answer for."""
    counts = estimate.parameters
    share = "all" if counts.trainable == counts.total else f"{counts.trainable / counts.total:.2%} of"
    return paragraph([answer(estimate), f"{estimate.recipe.label()}: {share} {counts.total:,} parameters train"])


def figures_first(estimate: Estimate) -> list[str]:
    """Return a paragraph of limits and changes, and one of speed, as far as they are known."""
    return [paragraph(lines) for lines in (figures(estimate), speed_figures(estimate)) if lines]


def _in_words(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
