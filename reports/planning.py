"""The estimator on a page: its compiled forms and arithmetic as data, which the page's scripts evaluate.

The results are exact for any choice: coefficients and arithmetic are the estimator's own (`expressions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from lorabench.estimator.answers.plan import TRIED_METHODS
from lorabench.estimator.answers.verdict import verdict_and_margin
from lorabench.estimator.closed_form.forms import Setup, branches, compile_form, persistent_of
from lorabench.estimator.closed_form.sizes import B, R, S, Values
from lorabench.estimator.devices.device import Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import COMPONENTS, Breakdown
from lorabench.estimator.memory.reserved import reserve
from lorabench.estimator.memory.workspaces import workspaces
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import CHOICES
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.reports.expressions import Program
from lorabench.reports.planned_speed import SpeedProgram, optimizer_bytes, rates

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Selectable ranks."""
LARGEST_BATCH_SIZE = 256
SHORTEST, LONGEST = 128, 131072
"""Range of selectable lengths, unless the model has fewer positions."""
MOST_KEPT = 16
"""Cache size in models: each takes a second to compute."""


def longest_length(spec: ModelSpec) -> int:
    """Return the longest selectable sequence."""
    return min(spec.max_position_embeddings or LONGEST, LONGEST)


def page_recipe(
    spec: ModelSpec, method: str, checkpointing: bool, rank: int | None = None, batch_size: int = 1, seq_len: int = 1
) -> ResolvedRecipe:
    """Return the recipe of a choice on the page. Other settings are the defaults, if the model supports them.

    Raises:
        UserError: the model does not support the choice.
    """
    resolved = recipe_for(
        spec,
        method=method,
        gradient_checkpointing=checkpointing,
        rank=rank,
        batch_size=batch_size,
        seq_len=seq_len,
    )
    refuse_impossible(resolved)
    return resolved


def planning(models: Sequence[ModelSpec], devices: Sequence[Device]) -> dict[str, Any]:
    """Return the data for estimates of ``models`` on each of ``devices`` that has flash attention.

    On other GPUs sdpa uses other kernels, for which the page has no forms.
    """
    devices = [device for device in devices if device.supports_flash_attention is not False]
    architectures = list(dict.fromkeys(device.compute_capability for device in devices))
    return {
        "components": list(COMPONENTS),
        "ranks": RANKS,
        "gpus": [
            {
                "name": device.name,
                "title": device.title,
                "memoryBytes": device.memory_bytes,
                "usableBytes": device.usable_bytes,
                "assumptions": device.assumptions,
                "architecture": architectures.index(device.compute_capability),
                "rates": rates(device),
            }
            for device in devices
        ],
        "architectures": [
            {"workspaces": workspaces(compute_capability).bytes, "reserved": _reserved(compute_capability)}
            for compute_capability in architectures
        ],
        "verdict": _verdict(),
        "models": [_model(msgspec.json.encode(spec)) for spec in models],
    }


@lru_cache(MOST_KEPT)
def _model(encoded: bytes) -> dict[str, Any]:
    spec = msgspec.json.decode(encoded, type=ModelSpec)
    speed, sizes = SpeedProgram(), SizesProgram(spec)
    recipes = {
        method: {answer: _recipe(spec, method, checkpointing, speed, sizes) for answer, checkpointing in CHECKPOINTING}
        for method in methods(spec)
    }
    return {
        "name": spec.name,
        "shortest": min(SHORTEST, longest_length(spec)),
        "longest": longest_length(spec),
        "sizes": sizes.written(),
        "speed": speed.steps,
        "recipes": recipes,
    }


CHECKPOINTING = (("yes", True), ("no", False))


def methods(spec: ModelSpec) -> list[str]:
    """Return the methods of a plan that ``spec`` supports."""

    def possible(method: str) -> bool:
        try:
            for _, checkpointing in CHECKPOINTING:
                compile_form(Setup(page_recipe(spec, method, checkpointing), "cuda"))
        except UserError:
            return False
        return True

    return [method for method in CHOICES["method"] if method in TRIED_METHODS and possible(method)]


def _recipe(
    spec: ModelSpec, method: str, checkpointing: bool, speed: SpeedProgram, sizes: SizesProgram
) -> dict[str, Any]:
    resolved = page_recipe(spec, method, checkpointing)
    settings = resolved.recipe.describe()
    chosen = ("model", "method", "rank", "lora_alpha", "batch_size", "seq_len", "gradient_checkpointing")
    ranks = RANKS if resolved.recipe.rank else (None,)
    ranked = [page_recipe(spec, method, checkpointing, rank) for rank in ranks]
    return {
        "settings": {name: value for name, value in settings.items() if name not in chosen},
        "assumptions": resolved.assumptions,
        "forms": _by_branch(resolved, sizes.forms),
        "tokensPerSecond": _by_branch(resolved, speed.record),
        "held": [_held(one) for one in ranked],
        "trainable": [one.parameters.trainable for one in ranked],
        "optimizerBytes": [optimizer_bytes(one) for one in ranked],
    }


def _by_branch(resolved: ResolvedRecipe, make: Callable[[ResolvedRecipe], Any]) -> list[list[Any]]:
    """Return ``make`` of the recipe for each code path: batch size 1 or more, within the sliding window or beyond.

    These two conditions select the code path (`branches`). Beyond the window is None for a model without one.
    """
    window = resolved.spec.config.get("sliding_window")
    return [
        [make(resolved.replaced(batch_size=batch_size, seq_len=length)) if length else None for length in (1, window)]
        for batch_size in (1, 2)
    ]


class SizesProgram:
    """Values of the monomials of one model's forms, recorded for any batch size, length and rank."""

    def __init__(self, spec: ModelSpec) -> None:
        self._program = Program()
        batch_size, seq_len, rank = map(self._program.variable, ("batch_size", "seq_len", "rank"))
        self._given = {B: batch_size, S: seq_len, R: rank}
        self._branches = [self._program.place_of(branch) for branch in branches(spec, batch_size, seq_len)]
        self._answers: set[int] = set(self._branches)

    def forms(self, resolved: ResolvedRecipe) -> list[dict[str, Any]]:
        """Return for each phase the peak candidates: component, step of a monomial, and its bytes."""
        values = Values(resolved, self._given)
        form = compile_form(Setup(resolved, "cuda"))
        places = {monomial: self._program.place_of(values[monomial]) for monomial in form.monomials}
        self._answers.update(places.values())
        components = list(COMPONENTS)
        return [
            {
                "phase": of_phase.phase,
                "candidates": [
                    [
                        (components.index(component), places[monomial], bytes_)
                        for (component, monomial), bytes_ in candidate.live.items()
                        if bytes_
                    ]
                    for candidate in of_phase.candidates
                ],
            }
            for of_phase in form.phases
        ]

    def written(self) -> dict[str, Any]:
        """Return the recorded steps, and the steps that select the code path."""
        return {"steps": self._program.steps([*self._answers]), "branches": self._branches}


def _held(resolved: ResolvedRecipe) -> dict[str, Any]:
    """Return phase → persistent bytes by component. Workspaces are 1 or 0: their size depends on the GPU."""
    persistent = persistent_of(Setup(resolved, "cuda"), resolved.recipe.optim, resolved.recipe.rank)
    return {
        phase: [int(bytes_.get(name, 0) > 0) if name == "workspaces" else bytes_.get(name, 0) for name in COMPONENTS]
        for phase, bytes_ in persistent.items()
    }


def _reserved(compute_capability: str | None) -> dict[str, Any]:
    program = Program()
    components: dict[str, Any] = {name: program.variable(name) for name in COMPONENTS}
    taken = reserve(components, compute_capability=compute_capability)
    answers = {
        name: program.place_of(value)
        for name, value in {
            "reservedLow": taken.reserved_range[0],
            "reservedHigh": taken.reserved_range[1],
            "total": taken.device_total,
            "totalLow": taken.device_total_range[0],
            "totalHigh": taken.device_total_range[1],
        }.items()
    }
    return {"steps": program.steps([*answers.values()]), "answers": answers}


def _verdict() -> dict[str, Any]:
    program = Program()
    total: Any = program.variable("total")
    memory = Breakdown(
        components={},
        phase="",
        peak_allocated_bytes=0,
        phase_peaks_bytes={},
        device_total_bytes=total,
        device_total_range_bytes=(program.variable("totalLow"), program.variable("totalHigh")),  # type: ignore[arg-type]
    )
    device_bytes: Any = program.variable("memoryBytes")
    margins: list[int] = []

    def judged() -> str:
        answer, margin = verdict_and_margin(memory, device_bytes)
        margins.append(program.place_of(margin))
        return answer

    answer = program.decisions(judged)
    return {"steps": program.steps([*margins, *_conditions(answer)]), "margin": margins[0], "answer": answer}


def _conditions(tree: Any) -> Iterator[int]:
    if isinstance(tree, dict):
        yield tree["if"]
        yield from _conditions(tree["then"])
        yield from _conditions(tree["else"])
