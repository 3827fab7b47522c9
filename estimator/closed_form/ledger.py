"""The ledger of live bytes, and the peak candidates: the moments at which they may peak."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from lorabench.estimator.closed_form.sizes import Monomial, Values
from lorabench.estimator.memory.breakdown import COMPONENTS

Slot = tuple[str, Monomial]
"""A component and a monomial. The slot's bytes are a multiple of the monomial."""
Live = Mapping[Slot, int]
"""Bytes by slot."""


class PeakCandidate(NamedTuple):
    """The live bytes at a possible peak: between the last allocation and the next free."""

    phase: str
    live: Live
    total: Mapping[Monomial, int]
    """The coefficient of each monomial, over all components."""

    def component_bytes(self, values: Values) -> dict[str, int]:
        """Return component → bytes for the given values."""
        components = dict.fromkeys(COMPONENTS, 0)
        for (component, monomial), bytes_ in self.live.items():
            if bytes_:
                components[component] += bytes_ * values[monomial]
        return components


class Block:
    """One allocation. It is freed with its last reference, as CPython frees torch's storages."""

    __slots__ = ("__weakref__", "bytes", "copies", "ledger", "number", "slot")

    number: int
    """Set by ledgers that number their blocks."""

    def __init__(self, ledger: Ledger, monomial: Monomial, bytes_: int, component: str) -> None:
        self.ledger = ledger
        self.bytes = bytes_
        self.slot = component, monomial
        self.copies = 1
        ledger.allocate(self)

    @property
    def component(self) -> str:
        """The component that counts its bytes."""
        return self.slot[0]

    def relabel(self, component: str) -> None:
        """Count these bytes under another component from now on."""
        moved = self.bytes * self.copies
        self.ledger.live[self.slot] -= moved
        self.slot = component, self.slot[1]
        self.ledger.live[self.slot] += moved

    def __del__(self) -> None:
        self.ledger.release(self)


class Ledger:
    """Live bytes, and the peak candidates.

    One layer runs and stands for ``copies`` identical ones. Live bytes change by the same amount from each copy to the
    next. So the peak is in the first copy or the last, and their candidates suffice. In forward the last copy runs on
    top of the memory that the others left. In backward the first copy frees only its own share. When the last one runs,
    the others' shares are gone and their gradients exist.
    """

    def __init__(self) -> None:
        self.live: defaultdict[Slot, int] = defaultdict(int)
        self.total: defaultdict[Monomial, int] = defaultdict(int)
        self.phase = "loaded"
        self.candidates: list[PeakCandidate] = []
        self._rising = False
        self.leaving_out = False
        """Whether no candidates are recorded now."""
        self._watched: list[weakref.ref[Block]] | None = None
        self._repeat: defaultdict[Slot, int] | None = None
        self._repeat_started = 0

    def allocate(self, block: Block) -> None:
        """Add ``block`` to the live bytes."""
        self._count(block.slot, block.bytes)
        self._rising = True
        if self._watched is not None:
            self._watched.append(weakref.ref(block))

    def release(self, block: Block) -> None:
        """Remove ``block`` from the live bytes."""
        self.mark()
        if block.copies > 1 and self._repeat is not None:
            self._count(block.slot, -block.bytes)
            self._repeat[block.slot] -= (block.copies - 1) * block.bytes
        else:
            self._count(block.slot, -block.copies * block.bytes)

    def _count(self, slot: Slot, bytes_: int) -> None:
        self.live[slot] += bytes_
        self.total[slot[1]] += bytes_

    def mark(self) -> None:
        """Record a peak candidate now, if there was an allocation since the last one."""
        if self._rising:
            if self.leaving_out:
                self._rising = False
                return
            self.candidates.append(PeakCandidate(self.phase, dict(self.live), dict(self.total)))
            self._rising = False

    def enter(self, phase: str) -> None:
        """Begin ``phase``."""
        self.mark()
        self.phase = phase
        self._rising = True

    def carry_over(self, blocks: list[Block]) -> None:
        """Add ``blocks`` to each candidate of forward: those of the last micro-batch stay until this one's exist."""
        self.mark()
        live: defaultdict[Slot, int] = defaultdict(int)
        total: defaultdict[Monomial, int] = defaultdict(int)
        for block in blocks:
            live[block.slot] += block.bytes
            total[block.slot[1]] += block.bytes
        self.candidates = [
            candidate
            if candidate.phase != "forward"
            else PeakCandidate(candidate.phase, _sum(candidate.live, live), _sum(candidate.total, total))
            for candidate in self.candidates
        ]

    def begin_forward_repeat(self) -> None:
        """Begin the forward pass of the layer that stands for several."""
        self.mark()
        self._watched = []
        self._repeat_started = len(self.candidates)

    def left_behind(self) -> list[Block]:
        """Return the blocks that were allocated since the repeat began and are still alive."""
        return [block for reference in self._watched or () if (block := reference()) is not None]

    def end_forward_repeat(self, blocks: list[Block], copies: int) -> None:
        """Count each of ``blocks`` ``copies`` times, and append the candidates of the last copy."""
        self.mark()
        self._watched = None
        change: defaultdict[Slot, int] = defaultdict(int)
        for block in blocks:
            change[block.slot] += (copies - 1) * block.bytes
            block.copies = copies
        self._add_shifted_candidates(change)

    def _add_shifted_candidates(self, change: Live) -> None:
        """Append the candidates since the repeat began once more, each plus ``change``; add it to live bytes too."""
        total: defaultdict[Monomial, int] = defaultdict(int)
        for (_, monomial), bytes_ in change.items():
            total[monomial] += bytes_
        for phase, live, live_total in self.candidates[self._repeat_started :]:
            self.candidates.append(PeakCandidate(phase, _sum(live, change), _sum(live_total, total)))
        for slot, bytes_ in change.items():
            self._count(slot, bytes_)
        self._rising = True

    def begin_backward_repeat(self) -> None:
        """Begin the backward pass of the layer that stands for several."""
        self.mark()
        self._repeat = defaultdict(int)
        self._repeat_started = len(self.candidates)

    def defer(self, block: Block, copies: int) -> None:
        """Count the other copies' gradients, ``copies`` − 1 times ``block``, when the repeat ends."""
        assert self._repeat is not None
        self._repeat[block.slot] += (copies - 1) * block.bytes

    @property
    def repeating(self) -> bool:
        """Whether the backward pass of a layer that stands for several is under way."""
        return self._repeat is not None

    def end_backward_repeat(self) -> None:
        """End the repeat: append the candidates of the last copy, and add the change in bytes of all other copies."""
        self.mark()
        change = self._repeat
        assert change is not None
        self._repeat = None
        self._add_shifted_candidates(change)


class SilentLedger(Ledger):
    """A ledger without candidates, for a tape that records something else."""

    def allocate(self, block: Block) -> None:
        """Do nothing."""

    def release(self, block: Block) -> None:
        """Do nothing."""

    def mark(self) -> None:
        """Do nothing."""


Key = TypeVar("Key")


def _sum(first: Mapping[Key, int], second: Mapping[Key, int]) -> dict[Key, int]:
    result = dict(first)
    for key, value in second.items():
        result[key] = result.get(key, 0) + value
    return result
