"""The page's first lines: what was run, where, and the figures that people quote."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import msgspec

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


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the runs have in common, counts by outcome, and the headline figures that the runs allow."""
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
        "headlines": [found for find in (_accuracy, _memory_ratio, _fastest) if (found := find(runs))],
        "differing": differing_facts(runs),
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
    )


def _memory_ratio(runs: Sequence[Run]) -> Headline | None:
    """Full : LoRA : QLoRA for recipes that differ in nothing but the method, the largest such model's."""
    trios = [trio for trio in _trios(runs) if all(run.measured_peak_bytes for run in trio)]
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
    )


def _trios(runs: Sequence[Run]) -> Iterator[tuple[Run, Run, Run]]:
    """Yield measured full, LoRA and QLoRA runs of one model on one device with equal settings.

    Base weights take each method's own dtype, as they do by default; LoRA and QLoRA share their adapters' settings.
    """
    adapters = ("rank", "lora_alpha", "lora_dropout", "target_modules", "adapter_dtype")
    own = ("method", "dtype", "quant_type", "double_quant", "prepare_kbit")
    alike: dict[object, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.measured_peak_bytes is None:
            continue
        settings = msgspec.structs.asdict(run.record.recipe)
        shared = tuple(value for field, value in settings.items() if field not in adapters + own)
        place = (shared, run.record.device, run.folder, msgspec.json.encode(run.record.model_config, order="sorted"))
        alike[place][run.method].append(run)
    for by_method in alike.values():
        for full in by_method["full"]:
            for lora in by_method["lora"]:
                for qlora in by_method["qlora"]:
                    pair = (lora.record.recipe, qlora.record.recipe)
                    if all(getattr(pair[0], field) == getattr(pair[1], field) for field in adapters):
                        yield full, lora, qlora


def _fastest(runs: Sequence[Run]) -> Headline | None:
    timed = [run for run in runs if run.tokens_per_second is not None]
    if not timed:
        return None
    fastest = max(timed, key=lambda run: run.tokens_per_second or 0)
    note = f"{fastest.full_name}, at the median step."
    return Headline("fastest", "Fastest", f"{format_number(fastest.tokens_per_second)} tokens/s", note)
