"""The page's first lines: what was run, where, and the figures that people quote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

from lorabench.reports.pairs import method_pairs
from lorabench.reports.quantities import format_bytes, format_date, format_number, format_share, plural
from lorabench.reports.runs import Run
from lorabench.reports.sections.environments import differing_facts
from lorabench.reports.sections.failures import OUTCOMES


class Headline(NamedTuple):
    """One figure of the summary."""

    name: str
    label: str
    value: str
    note: str
    section: str
    """Where the page says more."""


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the runs have in common, counts by outcome, warnings, and the headline figures that there are."""
    started = sorted(run.record.started_at for run in runs)
    first, last = format_date(started[0]), format_date(started[-1])
    outcomes = Counter(run.record.outcome for run in runs)
    return {
        "devices": list(dict.fromkeys(run.record.device for run in runs)),
        "suites": list(dict.fromkeys(run.record.suite for run in runs)),
        "models": list(dict.fromkeys(run.model for run in runs)),
        "started": f"{first} UTC" if first == last else f"{first} to {last} UTC",
        "count": len(runs),
        "outcomes": [(outcome, OUTCOMES[outcome], count) for outcome, count in outcomes.most_common()],
        "headlines": [found for find in (_accuracy, _memory_ratio, _fastest, _learnt) if (found := find(runs))],
        "differing": differing_facts(runs),
        "unstable": sum(bool(run.unstable) for run in runs),
        "timed": sum(run.timed is not None for run in runs),
        "failed": sum(run.record.outcome not in ("ok", "skipped") for run in runs),
    }


def _accuracy(runs: Sequence[Run]) -> Headline | None:
    errors = {run.index: abs(run.peak_error) for run in runs if run.peak_error is not None}
    if not errors:
        return None
    worst = runs[max(errors, key=errors.__getitem__)]
    return Headline(
        "accuracy",
        "Estimated against measured peak memory",
        f"{format_share(median(errors.values())).lstrip('+')} off",
        f"Median of {plural(len(errors), 'run')}; worst {format_share(worst.peak_error)} ({worst.full_name})."
        if len(errors) > 1
        else f"One run: {format_share(worst.peak_error)} ({worst.full_name}).",
        "accuracy",
    )


def _memory_ratio(runs: Sequence[Run]) -> Headline | None:
    """Full : LoRA : QLoRA for recipes that differ in nothing but the method, the largest such model's."""
    trios = list(_trios(runs))
    if not trios:
        return None
    full, lora, qlora = max(
        trios, key=lambda trio: (trio[0].measured_peak_bytes or 0, -(trio[1].record.recipe.rank or 0))
    )
    smallest = qlora.measured_peak_bytes or 0
    ratios = [f"{(run.measured_peak_bytes or 0) / smallest:.2f}" for run in (full, lora)]
    peaks = " : ".join(format_bytes(run.measured_peak_bytes) for run in (full, lora, qlora))
    recipe = lora.record.recipe
    return Headline(
        "ratio",
        "Peak memory, full : LoRA : QLoRA",
        " : ".join([*ratios, "1"]),
        f"{peaks} measured, {full.short_model}, rank {recipe.rank}, {recipe.batch_size}×{recipe.seq_len}.",
        "memory",
    )


def _trios(runs: Sequence[Run]) -> Iterator[tuple[Run, Run, Run]]:
    """Yield measured full, LoRA and QLoRA runs that differ in their methods only."""
    measured = [run for run in runs if run.measured_peak_bytes]
    quantized: dict[int, list[Run]] = {}
    for lora, qlora in method_pairs(measured, "lora", "qlora"):
        quantized.setdefault(lora.index, []).append(qlora)
    for full, lora in method_pairs(measured, "full", "lora"):
        for qlora in quantized.get(lora.index, []):
            yield full, lora, qlora


def _fastest(runs: Sequence[Run]) -> Headline | None:
    timed = [run for run in runs if run.tokens_per_second is not None]
    if not timed:
        return None
    fastest = max(timed, key=lambda run: run.tokens_per_second or 0)
    used = fastest.timed.mfu if fastest.timed else None
    note = f"{fastest.full_name}, at the median step" + (f"; MFU {100 * used:.1f}%." if used is not None else ".")
    return Headline("fastest", "Fastest", f"{format_number(fastest.tokens_per_second)} tokens/s", note, "speed")


def _learnt(runs: Sequence[Run]) -> Headline | None:
    """The lowest held-out loss; losses of several models or texts are not to be compared."""
    learnt = [run for run in runs if run.timed and run.timed.held_out_loss_after is not None]
    if not learnt or len({(run.model, run.record.dataset_digest) for run in learnt}) > 1:
        return None
    best = min(learnt, key=lambda run: run.learnt_loss or 0)
    before = best.timed.held_out_loss_before if best.timed else None
    note = f"{best.full_name}" + (f"; {before:.3f} before training." if before is not None else ".")
    return Headline("learnt", "Lowest held-out loss", f"{best.learnt_loss:.3f}", note, "learning")
