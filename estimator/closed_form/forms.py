"""The compiled closed form: a step's bytes as sums of monomials of batch, length and rank.

`peak_candidates` leaves batch size, length and rank open, except for a few branches. Persistent memory is added
separately, since it depends on the rank in other ways (8-bit states exist for large tensors only). So one form serves
all recipes that differ only in these three, for single numbers or arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from operator import ge
from typing import Any, NamedTuple

from msgspec.structs import replace

from lorabench.estimator.closed_form.autograd import Tape
from lorabench.estimator.closed_form.ledger import Ledger, PeakCandidate
from lorabench.estimator.closed_form.scans import FEW_CHUNKS, candidates_of_scan, example_length
from lorabench.estimator.closed_form.sizes import Monomial
from lorabench.estimator.closed_form.step import peak_candidates
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import NoClosedForm
from lorabench.estimator.memory.persistent import PersistentBytes, persistent_bytes
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import Optim
from lorabench.estimator.recipes.resolved import ResolvedRecipe

MOST_FORMS = 128
"""Size of the cache of forms; each takes some 100 kB."""
MOST_RANKS = 4096
"""Size of the cache of persistent memory, over all forms, ranks and optimizers."""


class Setup:
    """The key of a form: model, backend, GPU, and the recipe without batch size, length, rank and optimizer.

    Two setups are equal if their models' shapes and their recipes are.
    """

    __slots__ = ("_hash", "_key", "backend", "compute_capability", "resolved")

    def __init__(
        self,
        resolved: ResolvedRecipe,
        backend: Backend,
        compute_capability: str | None = None,
        *,
        most_chunks: int | None = None,
    ) -> None:
        """``most_chunks``: of a scan, for a setup that stands for all recipes with as many or more; None for the
        recipe's own number, since a step has as many operations as chunks."""
        spec, recipe = resolved.spec, resolved.recipe
        self.backend = backend
        self.compute_capability = compute_capability
        several, filled = branches(spec, recipe.batch_size, recipe.seq_len)
        left_open = replace(
            recipe,
            model=spec.name,
            adapter=None if recipe.adapter is None else recipe.adapter.rank_left_open(),
            batch_size=2 if several else 1,
            seq_len=_example_length(spec, recipe.seq_len, most_chunks, filled=filled),
            gradient_accumulation=min(recipe.gradient_accumulation, 2),
            optim="sgd",  # any optimizer: states are persistent memory, and the form leaves the optimizer's step out
        )
        self.resolved = ResolvedRecipe(spec, left_open)
        self._key = (spec.encoded, left_open, backend, compute_capability)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setup) and self._key == other._key


def _example_length(spec: ModelSpec, seq_len: int, most_chunks: int | None, *, filled: bool) -> int:
    """Return the length that stands for all with the same operations as ``seq_len``."""
    if not spec.scan_chunk:
        return int(spec.config["sliding_window"]) if filled else 1
    example = example_length(spec, seq_len, most_chunks)
    return example if branches(spec, 1, example)[1] == filled else seq_len


def branches(spec: ModelSpec, batch_size: Any, seq_len: Any) -> tuple[Any, Any]:
    """Return on which side of the two branches batch and length (numbers or arrays) are.

    First: whether there are several sequences; with one, some copies are views (`Step`, `Modules._eager`). Second:
    whether the sequence fills the model's sliding window, which then needs a mask (`Masks`).

    Raises:
        NoClosedForm: the sequence is longer than the closed form holds for.
    """
    longest = spec.longest_closed_form
    if longest and any_of(seq_len > longest):
        raise NoClosedForm(
            f"{spec.name}: the closed form holds for at most {longest} tokens, from which on the model selects some: "
            "use lorabench trace"
        )
    window = spec.config.get("sliding_window") or math.inf
    return batch_size > 1, seq_len >= window


def any_of(condition: Any) -> bool:
    """Return whether a condition on a number, or any of an array of them, holds."""
    return bool(condition.any() if hasattr(condition, "any") else condition)


def with_chunks(setup: Setup, chunks: int) -> Setup:
    """Return the setup of a recipe with a shorter sequence, of so many ``chunks`` in its scans."""
    resolved = setup.resolved
    length = example_length(resolved.spec, resolved.recipe.seq_len, chunks)
    return Setup(resolved.replaced(seq_len=length), setup.backend, setup.compute_capability)


def form_of(resolved: ResolvedRecipe, backend: Backend, compute_capability: str | None = None) -> tuple[Setup, Form]:
    """Return the form of the recipe and its setup.

    Raises:
        UserError: as in `compile_form`.
    """
    setup = Setup(resolved, backend, compute_capability, most_chunks=FEW_CHUNKS + 1)
    return setup, compile_form(setup)


class PhaseForm(NamedTuple):
    """The peak candidates of one phase, in order, without persistent memory."""

    phase: str
    candidates: tuple[PeakCandidate, ...]
    coefficients: tuple[tuple[int, ...], ...]
    """For each candidate, summed over components: bytes for each of `Form.monomials`."""


class Form(NamedTuple):
    """The linear forms of a step. Its peak is their maximum, plus persistent memory."""

    monomials: tuple[Monomial, ...]
    phases: tuple[PhaseForm, ...]
    """In order."""


@lru_cache(MOST_FORMS)
def compile_form(setup: Setup) -> Form:
    """Return the form of the step of ``setup``.

    Raises:
        UserError: the model lacks the target modules, or the combination has no closed form.
    """

    def run(resolved: ResolvedRecipe, left_out: int | None) -> list[PeakCandidate]:
        if left_out is None:
            return peak_candidates(resolved, setup.backend, setup.compute_capability)
        tape = Tape(Ledger())
        tape.left_out = left_out
        return peak_candidates(resolved, setup.backend, setup.compute_capability, tape)

    candidates = candidates_of_scan(setup.resolved, run)
    kept = {phase: _undominated(list(group)) for phase, group in groupby(candidates, lambda candidate: candidate.phase)}
    used = {
        monomial for of_phase in kept.values() for candidate in of_phase for monomial, n in candidate.total.items() if n
    }
    monomials = tuple(sorted(used))
    return Form(
        monomials,
        tuple(
            PhaseForm(phase, tuple(of_phase), tuple(_coefficients(candidate, monomials) for candidate in of_phase))
            for phase, of_phase in kept.items()
        ),
    )


def _coefficients(candidate: PeakCandidate, monomials: Iterable[Monomial]) -> tuple[int, ...]:
    return tuple(candidate.total.get(monomial, 0) for monomial in monomials)


@lru_cache(MOST_RANKS)
def persistent_of(setup: Setup, optim: Optim, rank: int | None) -> PersistentBytes:
    """Return the persistent memory of ``setup`` with this optimizer and rank."""
    spec, recipe = setup.resolved.spec, setup.resolved.recipe
    resolved = ResolvedRecipe(spec, replace(recipe.with_rank(rank), optim=optim))
    return persistent_bytes(resolved, setup.backend, setup.compute_capability)


def _undominated(candidates: list[PeakCandidate]) -> list[PeakCandidate]:
    """Return the candidates that can be the maximum for some batch, length and rank; the first of equal ones.

    A candidate cannot be the maximum if another one is at least as large in every coefficient, since no monomial is
    negative.
    """
    monomials = {monomial for candidate in candidates for monomial in candidate.total}
    first: dict[tuple[int, ...], int] = {}
    for index, candidate in enumerate(candidates):
        first.setdefault(_coefficients(candidate, monomials), index)
    kept: list[tuple[int, ...]] = []
    for total in sorted(first, key=sum, reverse=True):  # a candidate comes before all that it exceeds
        for place, larger in enumerate(kept):
            if all(map(ge, larger, total)):
                kept.insert(0, kept.pop(place))  # it is likely to exceed the next one too
                break
        else:
            kept.append(total)
    return [candidates[index] for index in sorted(first[total] for total in kept)]
