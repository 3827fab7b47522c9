"""A step recorded tensor by tensor: the operation and module that made each tensor that is alive at a peak candidate.

It runs the usual step (`peak_candidates`), with a tape and a ledger that also record the origin of each block.
"""

from __future__ import annotations

import weakref
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from lorabench.estimator.closed_form.autograd import NOWHERE, Place, Tape, Tensor
from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.ledger import Block, Ledger, Live, PeakCandidate, Slot
from lorabench.estimator.closed_form.sizes import ONE, Monomial
from lorabench.estimator.closed_form.step import peak_candidates
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class Maker(NamedTuple):
    """The operation that made a block, and the block's original shape."""

    place: Place
    operation: str
    """The operation's name on the tape; empty for blocks that no operation made."""
    name: str
    """A name for the block, unless it is the operation's result."""
    backward: bool
    """Whether the operation's backward made it."""
    features: int
    dtype: str


GIVEN = Maker(NOWHERE, "", "", backward=False, features=0, dtype="")
"""The maker of the step's inputs: the batch, and all persistent memory."""


class Item(NamedTuple):
    """Tensors of one maker under one component, as multiples of one monomial."""

    component: str
    monomial: Monomial
    maker: Maker
    bytes: int
    """Bytes of all of them, for each unit of the monomial."""


MOST_STEPS = 8
"""Size of the cache of steps; each takes some megabytes."""

Alive = dict[tuple[Slot, Maker], int]
"""Slot and maker → bytes."""


class ItemisedStep(NamedTuple):
    """The peak candidates of a step, with the tensors of each."""

    candidates: list[PeakCandidate]
    alive: list[Alive]
    latest: list[Maker]
    """The last allocation before each candidate."""
    one_layer: Alive
    """The tensors that each layer of the largest group of identical ones leaves in forward; empty without such a
    group."""

    def items(self, index: int) -> list[Item]:
        """Return the tensors that are alive at candidate ``index``, in the order of allocation."""
        return _items(self.alive[index])

    def layer_items(self) -> list[Item]:
        """Return the tensors that one layer leaves in forward, in the order of allocation."""
        return _items(self.one_layer)


def itemised_step(resolved: ResolvedRecipe, backend: Backend, compute_capability: str | None = None) -> ItemisedStep:
    """Return the step of the recipe with the maker of each live tensor, without persistent memory.

    Raises:
        UserError: the combination has no closed form.
    """
    return _step(Setup(resolved, backend, compute_capability))


@lru_cache(MOST_STEPS)
def _step(setup: Setup) -> ItemisedStep:
    ledger = _ItemisedLedger()
    candidates = peak_candidates(setup.resolved, setup.backend, setup.compute_capability, _ItemisedTape(ledger))
    return ItemisedStep(candidates, ledger.alive, ledger.latest, ledger.one_layer)


def _items(alive: Alive) -> list[Item]:
    return [Item(*slot, maker, bytes_) for (slot, maker), bytes_ in alive.items() if bytes_]


class _ItemisedLedger(Ledger):
    """A ledger that records each block. It keeps no reference to them, which would keep them alive."""

    def __init__(self) -> None:
        super().__init__()
        self.making = GIVEN
        self.alive: list[Alive] = []
        self.latest: list[Maker] = []
        self.one_layer: Alive = {}
        self._layers = 0
        self._blocks: dict[int, tuple[weakref.ref[Block], Maker]] = {}
        self._copies: Counter[tuple[Slot, Maker]] = Counter()
        """Bytes of the copies that do not run, and so have no blocks."""
        self._change: Counter[tuple[Slot, Maker]] = Counter()
        """Change in bytes from the first copy to the last of the current repeat."""

    def allocate(self, block: Block) -> None:
        self._blocks[id(block)] = (weakref.ref(block), self.making)
        super().allocate(block)

    def release(self, block: Block) -> None:
        self.mark()
        _, maker = self._blocks.pop(id(block))
        if block.copies > 1 and self.repeating:
            others = (block.copies - 1) * block.bytes
            self._copies[block.slot, maker] += others
            self._change[block.slot, maker] -= others
        super().release(block)

    def defer(self, block: Block, copies: int) -> None:
        self._change[block.slot, self._maker(block)] += (copies - 1) * block.bytes
        super().defer(block, copies)

    def carry_over(self, blocks: list[Block]) -> None:
        super().carry_over(blocks)
        for alive, candidate in zip(self.alive, self.candidates, strict=True):
            if candidate.phase == "forward":
                for block in blocks:
                    key = block.slot, self._maker(block)
                    alive[key] = alive.get(key, 0) + block.bytes

    def end_forward_repeat(self, blocks: list[Block], copies: int) -> None:
        self.mark()
        left = Counter[tuple[Slot, Maker]]()
        for block in blocks:
            left[block.slot, self._maker(block)] += block.bytes
            self._change[block.slot, self._maker(block)] += (copies - 1) * block.bytes
        if copies > self._layers:
            self._layers, self.one_layer = copies, dict(left)
        super().end_forward_repeat(blocks, copies)
        self._change.clear()

    def end_backward_repeat(self) -> None:
        super().end_backward_repeat()
        self._copies.update(self._change)
        self._change.clear()

    def mark(self) -> None:
        known = len(self.candidates)
        super().mark()
        if len(self.candidates) > known:
            alive = Counter(self._copies)
            for reference, maker in self._blocks.values():
                block = reference()
                assert block is not None
                alive[block.slot, maker] += block.copies * block.bytes
            self.alive.append(alive)
            self.latest.append(self.making)

    def _add_shifted_candidates(self, change: Live) -> None:
        started = self._repeat_started
        super()._add_shifted_candidates(change)
        for index in range(started, len(self.alive)):
            alive = Counter(self.alive[index])
            alive.update(self._change)
            self.alive.append(alive)
            self.latest.append(self.latest[index])

    def _maker(self, block: Block) -> Maker:
        return self._blocks[id(block)][1]


class _ItemisedTape(Tape):
    """A tape that records the maker of each tensor in its ledger."""

    def __init__(self, ledger: _ItemisedLedger) -> None:
        super().__init__(ledger)
        self._itemised = ledger

    def new(
        self,
        tokens: Monomial,
        features: int,
        dtype: str,
        component: str = "temporaries",
        *,
        times: Monomial = ONE,
        name: str = "",
    ) -> Tensor:
        self._itemised.making = Maker(self.place, self.operation, name, self.in_backward, features, dtype)
        return super().new(tokens, features, dtype, component, times=times)
