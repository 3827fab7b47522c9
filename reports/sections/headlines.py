"""Headline figures: of the runs, and of estimates for the page's first model on its first GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from lorabench.estimator.answers.plan import TRIED_METHODS
from lorabench.estimator.answers.verdict import judge, verdict_and_margin
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import Device
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.throughput import estimate_throughput
from lorabench.reports.pairs import method_pairs
from lorabench.reports.planning import longest_length, methods, page_recipe
from lorabench.reports.quantities import format_bytes, format_number, format_share, plural
from lorabench.reports.runs import Run
from lorabench.reports.subject import Subject

METHODS = {"full": "full", "lora": "LoRA", "qlora": "QLoRA", "ia3": "IA3"}
"""Method → its name in headlines."""


class Headline(NamedTuple):
    """One headline of the summary."""

    name: str
    label: str
    value: str
    note: str
    section: str
    """Section with the details."""


def measured(runs: Sequence[Run]) -> list[Headline]:
    """Return the headlines of the runs."""
    return [found for find in (_accuracy, _memory_ratio, _fastest, _learnt) if (found := find(runs))]


def _accuracy(runs: Sequence[Run]) -> Headline | None:
    errors = {run.index: abs(run.peak_error) for run in runs if run.peak_error is not None}
    if not errors:
        return None
    worst = runs[max(errors, key=errors.__getitem__)]
    return Headline(
        "accuracy",
        "Error of estimated peak memory",
        f"{format_share(median(errors.values())).lstrip('+')} off",
        f"Median of {plural(len(errors), 'run')}; worst {format_share(worst.peak_error)} ({worst.full_name})."
        if len(errors) > 1
        else f"One run: {format_share(worst.peak_error)} ({worst.full_name}).",
        "accuracy",
    )


def _memory_ratio(runs: Sequence[Run]) -> Headline | None:
    """Peak memory full : LoRA : QLoRA, for recipes that differ only in the method; of the largest such model."""
    trios = list(_trios(runs))
    if not trios:
        return None
    full, lora, qlora = max(
        trios, key=lambda trio: (trio[0].measured_peak_bytes or 0, -(trio[1].record.recipe.rank or 0))
    )
    peaks = [run.measured_peak_bytes or 0 for run in (full, lora, qlora)]
    recipe = lora.record.recipe
    note = f"measured, {full.short_model}, rank {recipe.rank}, {recipe.batch_size}×{recipe.seq_len}."
    return _ratio(peaks, note, "memory")


def _ratio(peaks: Sequence[int], note: str, section: str) -> Headline:
    value = " : ".join([*(f"{peak / peaks[-1]:.2f}" for peak in peaks[:-1]), "1"])
    written = " : ".join(map(format_bytes, peaks))
    return Headline("ratio", "Peak memory, full : LoRA : QLoRA", value, f"{written} {note}", section)


def _trios(runs: Sequence[Run]) -> Iterator[tuple[Run, Run, Run]]:
    """Yield measured full, LoRA and QLoRA runs that differ only in the method."""
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
    if fastest.unstable:
        note += " Its step times are unreliable."
    return Headline("fastest", "Fastest", f"{format_number(fastest.tokens_per_second)} tokens/s", note, "speed")


def _learnt(runs: Sequence[Run]) -> Headline | None:
    """The lowest held-out loss of the model, weights and text with most runs. Losses of others are not comparable."""
    learnt = [run for run in runs if run.timed and run.timed.held_out_loss_after is not None]
    if not learnt:
        return None
    [(compared, _)] = Counter(map(_learning, learnt)).most_common(1)
    best = min((run for run in learnt if _learning(run) == compared), key=lambda run: run.learnt_loss or 0)
    before = best.timed.held_out_loss_before if best.timed else None
    note = f"{best.full_name}" + (f"; {before:.3f} before training." if before is not None else ".")
    return Headline("learnt", "Lowest held-out loss", f"{best.learnt_loss:.3f}", note, "learning")


def _learning(run: Run) -> tuple[str, str | None, str | None]:
    return run.model, run.record.weights_digest, run.record.dataset_digest


def estimated(subject: Subject) -> list[Headline]:
    """Return what fits the page's first GPU; without runs, also memory and speed of the methods.

    If all runs were on a CPU, there is no GPU to estimate for.
    """
    if not subject.models or (subject.runs and not subject.devices):
        return []
    spec, device = subject.models[0], subject.gpus[0]
    recipes = _usual_recipes(spec)
    if not recipes:
        return []
    find = [_longest] if subject.runs else [_longest, _estimated_ratio, _speeds]
    return [found for one in find if (found := one(recipes, device))]


def _usual_recipes(spec: ModelSpec) -> list[ResolvedRecipe]:
    """Return the default recipe of each method that the model supports."""
    seq_len = min(recipe_for(spec).recipe.seq_len, longest_length(spec))
    return [page_recipe(spec, method, True, seq_len=seq_len) for method in methods(spec)]


def _named(label: str, recipes: Sequence[ResolvedRecipe]) -> str:
    names = " : ".join(METHODS[one.recipe.method] for one in recipes)
    return f"{label}, {names}"


def _common(recipes: Sequence[ResolvedRecipe]) -> str:
    ranks = {one.recipe.rank for one in recipes if one.recipe.rank}
    return ", ".join([recipes[0].spec.name.rsplit("/", 1)[-1], *(f"rank {rank}" for rank in ranks), "checkpointing"])


def _longest(recipes: Sequence[ResolvedRecipe], device: Device) -> Headline:
    longest = [judge(one, _memory(one, device), device).longest_seq_len for one in recipes]
    return Headline(
        "fits",
        _named(f"Longest sequence on {device.name}", recipes),
        " : ".join(f"{length:,}" if length else "none" for length in longest),
        f"tokens, estimated: {_common(recipes)}, batch size 1.",
        "fits",
    )


def _memory(resolved: ResolvedRecipe, device: Device) -> Breakdown:
    return estimate_memory(resolved, compute_capability=device.compute_capability)


def _estimated_ratio(recipes: Sequence[ResolvedRecipe], device: Device) -> Headline | None:
    if len(recipes) < len(TRIED_METHODS):
        return None
    peaks = [_memory(one, device).peak_allocated_bytes for one in recipes]
    return _ratio(peaks, f"estimated, {_common(recipes)}, 1×{recipes[0].recipe.seq_len}.", "what_if")


def _speeds(recipes: Sequence[ResolvedRecipe], device: Device) -> Headline | None:
    """Tokens per second of the methods that fit, or may fit."""
    shown = []
    for one in recipes:
        speed = estimate_throughput(one, device)
        answer, _ = verdict_and_margin(_memory(one, device), device.memory_bytes)
        shown.append(speed.tokens_per_second if speed and answer != "does not fit" else None)
    if not any(shown):
        return None
    sizes = f"{_common(recipes)}, 1×{recipes[0].recipe.seq_len}"
    return Headline(
        "speed",
        _named("Tokens per second", recipes),
        " : ".join(map(format_number, shown)),
        f"estimated from the datasheet of {device.name}, if it fits: {sizes}.",
        "what_if",
    )
