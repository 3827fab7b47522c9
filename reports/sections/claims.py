"""Check common claims about fine-tuning against estimates and runs.

The claims are data: ``claims.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.memory.quantization import quantized_bytes
from lorabench.estimator.memory.states import states
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.throughput import likely_step_time
from lorabench.reports.pairs import groups_of_equal_recipes, method_pairs, rank_pairs
from lorabench.reports.quantities import format_number, format_share
from lorabench.reports.runs import Run
from lorabench.reports.subject import Subject

DATA = Path(__file__).parent.parent / "claims.toml"
WITHIN = 0.10
"""Relative tolerance of a claimed figure: claims are rounded."""
HIGH_RANK = 256

Unit = Literal["bytes", "bytes per parameter", "parameters", "bits", "share", "times"]
Agreement = Literal["agrees", "differs", "unknown"]


class Figure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of a claim, and how to check it. Without quantity and runs it cannot be checked."""

    what: str
    claimed: float
    claimed_to: float | None = None
    """The upper end, if a range is claimed."""
    unit: Unit
    quantity: str | None = None
    """Name of `OF_RECIPES` or `OF_ELEMENTS`."""
    model: str | None = None
    options: dict[str, Any] = {}
    against: dict[str, Any] = {}
    """Options of the second recipe, which is compared with that of ``options``."""
    gpu: str | None = None
    elements: float | None = None
    """Number of quantised weights."""
    runs: str | None = None
    """Name of `OF_RUNS`."""


class Claim(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A claim, and why it is right or wrong."""

    topic: Literal["memory", "speed", "quality"]
    says: str
    why: str
    figures: tuple[Figure, ...]


class _Claims(Struct, frozen=True, forbid_unknown_fields=True):
    claims: tuple[Claim, ...]


class Answered(NamedTuple):
    """A figure with its estimated and measured value, in its own unit."""

    figure: Figure
    estimated: float | None
    measured: float | None
    runs: int
    """Number of runs, or pairs of runs, behind ``measured``."""
    unstable: bool = False
    """True if only runs with unstable step times could answer."""

    @property
    def verdict(self) -> Agreement:
        """Whether the measurement agrees with the claim; without one, whether the estimate does."""
        answer = self.estimated if self.measured is None else self.measured
        if answer is None:
            return "unknown"
        low = self.figure.claimed
        high = low if self.figure.claimed_to is None else self.figure.claimed_to
        return "agrees" if low - WITHIN * abs(low) <= answer <= high + WITHIN * abs(high) else "differs"

    @property
    def shown(self) -> dict[str, str]:
        """The claimed, estimated and measured values as text."""
        figure = self.figure
        claimed = _write(figure.claimed, figure.unit)
        if figure.claimed_to is not None:
            claimed = f"{claimed} to {_write(figure.claimed_to, figure.unit)}"
        return {
            "claimed": claimed,
            "estimated": _write(self.estimated, figure.unit),
            "measured": "unstable runs only" if self.unstable else _write(self.measured, figure.unit),
        }


def claims(subject: Subject) -> dict[str, Any] | None:
    """Return the claims by topic, with their figures."""
    answered = [(claim, [_answer(figure, subject.runs) for figure in claim.figures]) for claim in read_claims()]
    verdicts = [one.verdict for _, figures in answered for one in figures]
    topics = list(dict.fromkeys(claim.topic for claim, _ in answered))
    return {
        "topics": [(topic, [pair for pair in answered if pair[0].topic == topic]) for topic in topics],
        "counts": {verdict: verdicts.count(verdict) for verdict in ("agrees", "differs", "unknown")},
    }


@cache
def read_claims() -> tuple[Claim, ...]:
    """Return the claims in the data file."""
    return msgspec.toml.decode(DATA.read_bytes(), type=_Claims).claims


def _answer(figure: Figure, runs: Sequence[Run]) -> Answered:
    if figure.runs is not None:
        ask = OF_RUNS[figure.runs]
        values = [*ask([run for run in runs if not run.unstable] if figure.runs in TIMED else runs)]
        unstable = not values and any(True for _ in ask(runs))
        return Answered(figure, None, median(values) if values else None, len(values), unstable)
    values = [*_measured(figure, runs)]
    return Answered(figure, _estimated(figure), median(values) if values else None, len(values))


def _estimated(figure: Figure) -> float | None:
    key = msgspec.json.encode(figure)
    return None if figure.quantity is None else _estimate(key)


@cache
def _estimate(key: bytes) -> float:
    figure = msgspec.json.decode(key, type=Figure)
    assert figure.quantity is not None
    if figure.elements is not None:
        return OF_ELEMENTS[figure.quantity](int(figure.elements), figure.options.get("double_quant", True))
    assert figure.model is not None
    spec = find_model(figure.model)
    if figure.quantity == "slower":
        return _slower(spec, figure)
    return OF_RECIPES[figure.quantity](ResolvedRecipe(spec, make_recipe(spec.name, **figure.options)))


def _slower(spec: ModelSpec, figure: Figure) -> float:
    """Return the relative loss in tokens per second."""
    assert figure.gpu is not None
    device = find_device(figure.gpu)
    before, after = (
        likely_step_time(ResolvedRecipe(spec, make_recipe(spec.name, **options)), device)
        for options in (figure.options, figure.against)
    )
    assert before is not None
    assert after is not None
    return float(1 - before.total / after.total)


def _persistent(resolved: ResolvedRecipe) -> float:
    return sum(term.bytes for term in states(resolved, "cuda").terms)


def _base_weights(resolved: ResolvedRecipe) -> float:
    found = states(resolved, "cuda")
    return found.component_bytes("weights") + found.component_bytes("quantized_weights")


OF_RECIPES: dict[str, Callable[[ResolvedRecipe], float]] = {
    "persistent": _persistent,
    "persistent per parameter": lambda resolved: _persistent(resolved) / resolved.spec.parameters,
    "base weights": _base_weights,
    "peak": lambda resolved: estimate_memory(resolved).peak_allocated_bytes,
    "trainable": lambda resolved: resolved.parameters.trainable,
    "trainable in a layer": lambda resolved: resolved.parameters.trainable / resolved.spec.num_hidden_layers,
    "adapter file": lambda resolved: resolved.parameters.trainable * ITEMSIZE[resolved.recipe.trained_dtype],
    "linear parameters": lambda resolved: resolved.spec.linear_parameters,
}
"""Quantity → its value for a recipe on a model."""


def _constant_bytes(elements: int, double_quant: bool) -> float:
    sizes = quantized_bytes(elements, double_quant=double_quant)
    return sizes.absmax + sizes.nested_absmax


OF_ELEMENTS: dict[str, Callable[[int, bool], float]] = {
    "constant bytes": _constant_bytes,
    "constant bits": lambda elements, double_quant: 8 * _constant_bytes(elements, double_quant) / elements,
    "double quantisation saves": lambda elements, _: _constant_bytes(elements, False) - _constant_bytes(elements, True),
}
"""Quantity → its value for a number of quantised weights, with or without double quantisation."""


def _measured(figure: Figure, runs: Sequence[Run]) -> Iterator[float]:
    """Yield the values that runs of the figure's own recipe measured on a GPU."""
    if figure.model is None or figure.quantity not in ("peak", "trainable"):
        return
    spec = find_model(figure.model)
    digest = make_recipe(spec.name, **figure.options).digest(spec.config)
    for run in runs:
        measurement = run.record.measurement
        if run.record.digest == digest and run.record.device.backend == "cuda" and measurement is not None:
            memory, parameters = measurement.memory, measurement.parameters
            yield memory.peak_allocated_bytes if figure.quantity == "peak" else parameters.trainable


def _slowdowns(pairs: Iterable[tuple[Run, Run]]) -> Iterator[float]:
    for before, after in pairs:
        if before.tokens_per_second and after.tokens_per_second:
            yield 1 - after.tokens_per_second / before.tokens_per_second


def _loss_changes(pairs: Iterable[tuple[Run, Run]]) -> Iterator[float]:
    for before, after in pairs:
        old, new = (
            run.record.measurement.held_out_loss_after if run.record.measurement else None for run in (before, after)
        )
        if old and new:
            yield new / old - 1


def _high_rank_pairs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Yield full fine-tuning and LoRA at a high rank."""
    for full, lora in method_pairs(runs, "full", "lora"):
        if (lora.record.recipe.rank or 0) >= HIGH_RANK:
            yield full, lora


def _target_pairs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    for group in groups_of_equal_recipes([run for run in runs if run.record.recipe.rank], ["target_modules"]):
        by_targets = {run.settings.get("target_modules"): run for run in group}
        if {"attention", "all-linear"} <= set(by_targets):
            yield by_targets["attention"], by_targets["all-linear"]


def _first_losses(runs: Sequence[Run]) -> Iterator[float]:
    """Yield the largest difference between the first losses with and without adapters, as a share."""
    differences = [
        abs(measured.adapted_loss / measured.base_loss - 1)
        for run in runs
        if (measured := run.record.measurement) and measured.base_loss and measured.adapted_loss is not None
    ]
    if differences:
        yield max(differences)


OF_RUNS: dict[str, Callable[[Sequence[Run]], Iterator[float]]] = {
    "qlora slower": lambda runs: _slowdowns(method_pairs(runs, "lora", "qlora")),
    "rank slower": lambda runs: _slowdowns(rank_pairs(runs)),
    "qlora loss": lambda runs: _loss_changes(method_pairs(runs, "lora", "qlora")),
    "high rank loss": lambda runs: _loss_changes(_high_rank_pairs(runs)),
    "all-linear loss": lambda runs: _loss_changes(_target_pairs(runs)),
    "first loss": _first_losses,
}
"""Question → a value from each pair of runs that differ only in this; the median is shown."""
TIMED = {"qlora slower", "rank slower"}
"""Questions about step times; unstable runs are ignored."""


def _write(value: float | None, unit: Unit) -> str:
    """Return a figure in the style of the claims: bytes in powers of ten."""
    if value is None:
        return "–"
    if unit == "bytes":
        size, name = next(
            (size, name) for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1, "B")) if value >= size
        )
        return f"{value / size:.4g} {name}"
    if unit == "share":
        return format_share(value)
    if unit == "parameters":
        return f"{value:,.0f}"
    return {
        "bits": f"{value:.3g} bits",
        "bytes per parameter": f"{value:.4g} B",
        "times": f"{format_number(value)} ×",
    }[unit]
