"""The closed form compiled: what a step takes as sums of monomials of batch, length and rank, found once.

`step_moments` leaves batch size, length and rank open but for a few branches, and but for what the recipe holds for
the whole training, which depends on the rank in its own ways (8-bit states of large tensors only). So one form serves
all recipes that differ in these three alone, one number or arrays of them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import groupby
from operator import ge, sub
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from lorabench.estimator.closed_form.sizes import COMPONENT_INDEX, ONE, WIDTH, Moment
from lorabench.estimator.closed_form.step import step_moments
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.memory.breakdown import COMPONENTS
from lorabench.estimator.memory.states import loaded_weights, states
from lorabench.estimator.memory.workspaces import workspaces
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import Optim, Recipe

MOST_FORMS = 128
"""Forms kept: a form takes some 100 kB."""
MOST_RANKS = 4096
"""Ranks and optimizers, over all forms, whose states are kept."""


class Setup:
    """What a form depends on: the model, the kernels, and the recipe but for batch size, length, rank and optimizer.

    Two setups are equal when their models' shapes and their recipes are; a model is compared by all that it holds,
    since it may hold dictionaries and has no hash.
    """

    __slots__ = ("_hash", "_key", "kernels", "recipe", "spec")

    def __init__(self, spec: ModelSpec, recipe: Recipe, kernels: Backend) -> None:
        self.spec = spec
        self.kernels = kernels
        adapted = recipe.rank is not None
        many, filled = branches(spec, recipe.batch_size, recipe.seq_len)
        self.recipe = replace(
            recipe,
            model=spec.name,
            rank=1 if adapted else None,
            lora_alpha=1.0 if adapted else None,
            batch_size=2 if many else 1,
            seq_len=spec.config["sliding_window"] if filled else 1,
            gradient_accumulation=min(recipe.gradient_accumulation, 2),
            optim="sgd",  # without states; those of the recipe's own are `held_throughout`
        )
        self._key = (msgspec.msgpack.encode(spec), self.recipe, kernels)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setup) and self._key == other._key


def branches(spec: ModelSpec, batch_size: Any, seq_len: Any) -> tuple[Any, Any]:
    """Return where batch and length (numbers or arrays) change what runs: all that decides is on which side they are.

    The first says whether there are several sequences: of one, some copies are views (`Step`,
    `Modules._eager`). The second says whether the sequence fills the model's window: then it needs a mask (`Masks`).
    """
    window = spec.config.get("sliding_window") or math.inf
    return batch_size > 1, seq_len >= window


class PhaseForm(NamedTuple):
    """The moments of one phase that may be its peak, in order, without what is held for the whole training."""

    phase: str
    moments: tuple[Moment, ...]
    coefficients: tuple[tuple[int, ...], ...]
    """Of each moment, over all components: bytes for each of `sizes.MONOMIALS`."""


@lru_cache(MOST_FORMS)
def compile_form(setup: Setup) -> tuple[PhaseForm, ...]:
    """Return the form of each phase, in order.

    Raises:
        UserError: target modules that the model does not have, or a combination that has no closed form.
    """
    moments = step_moments(setup.spec, setup.recipe, setup.kernels)
    held = _held_by_phase(setup.spec, setup.recipe, setup.kernels, None)
    return tuple(
        _phase_form(phase, list(alike), held[phase]) for phase, alike in groupby(moments, lambda moment: moment.phase)
    )


@lru_cache(MOST_RANKS)
def held_throughout(
    setup: Setup, optim: Optim, rank: int | None, compute_capability: str | None
) -> dict[str, dict[str, int]]:
    """Return phase → component → bytes of what is held for the whole training, and of the optimizer's temporaries.

    cuBLAS' workspaces are those of ``compute_capability``.
    """
    return _held_by_phase(setup.spec, replace(setup.recipe, optim=optim, rank=rank), setup.kernels, compute_capability)


def _held_by_phase(
    spec: ModelSpec, recipe: Recipe, kernels: Backend, compute_capability: str | None
) -> dict[str, dict[str, int]]:
    held = states(spec, recipe, kernels)
    loaded = dict.fromkeys(COMPONENTS, 0)
    for term in loaded_weights(spec, recipe):
        loaded[term.component] += term.bytes
    adapted = {name: held.component_bytes(name) for name in COMPONENTS if name not in ("gradients", "optimizer_states")}
    training = adapted | {"optimizer_states": held.component_bytes("optimizer_states"), "gradients": 0}
    if kernels == "cuda":
        training["workspaces"] = workspaces(compute_capability).bytes
    if recipe.gradient_accumulation > 1:
        training["gradients"] = held.component_bytes("gradients")
    stepping = training | {"temporaries": held.optimizer.temporaries}
    return {
        "loaded": loaded,
        "adapted": adapted,
        "forward": training,
        "backward": training,
        "optimizer": stepping,
    }


def _phase_form(phase: str, moments: list[Moment], held: dict[str, int]) -> PhaseForm:
    constants = [0] * (WIDTH * len(COMPONENTS))
    for name, bytes_ in held.items():
        constants[COMPONENT_INDEX[name] * WIDTH + ONE] = bytes_
    total = [sum(held.values()) if monomial == ONE else 0 for monomial in range(WIDTH)]
    kept = [moments[index] for index in _undominated([moment.total for moment in moments])]
    working = [Moment(phase, _minus(moment.live, constants), _minus(moment.total, total)) for moment in kept]
    return PhaseForm(phase, tuple(working), tuple(moment.total for moment in working))


def _minus(bytes_: tuple[int, ...], constants: list[int]) -> tuple[int, ...]:
    return tuple(map(sub, bytes_, constants))


def _undominated(coefficients: list[tuple[int, ...]]) -> list[int]:
    """Return which moments can be the first that takes the most, whatever the batch, the length and the rank.

    One that another equals or exceeds in every coefficient cannot: monomials are at least 1, or stand for nothing.
    """
    first: dict[tuple[int, ...], int] = {}
    for index, total in enumerate(coefficients):
        first.setdefault(total, index)
    kept: list[tuple[int, ...]] = []
    for total in sorted(first, key=sum, reverse=True):  # what exceeds another comes before it
        for place, larger in enumerate(kept):
            if all(map(ge, larger, total)):
                kept.insert(0, kept.pop(place))  # it is likely to exceed the next one too
                break
        else:
            kept.append(total)
    return sorted(first[total] for total in kept)
