"""Sizes as whole multiples of monomials in batch, length and rank, and the ledger of live bytes made of them."""

from __future__ import annotations

import weakref
from operator import add
from typing import Any, NamedTuple

from lorabench.estimator.memory.breakdown import COMPONENTS
from lorabench.estimator.memory.embedding_backward import embedding_scratch
from lorabench.estimator.memory.fused_loss import chunk_rows
from lorabench.estimator.models.spec import ModelSpec

MONOMIALS = ("1", "S", "B·S", "S·S", "B·S·S", "r", "B·S·r", "B·⌈S⌉128", "c", "B·(S − 1)", "i", "p", "i′", "p′")
"""B: batch size, S: sequence length, r: rank; ⌈S⌉128: S rounded up to a multiple of 128, as flash attention pads it;
c: tokens that a fused loss takes at a time; i and p: indices and parts of sums of
an embedding's backward (`embedding_backward`); i′ and p′: those of learned positions."""
ONE, S, BS, SS, BSS, R, BSR, BS128, CHUNK, SHIFTED, INDICES, PARTS, POSITION_INDICES, POSITION_PARTS = range(
    len(MONOMIALS)
)
WITH_RANK = {ONE: R, BS: BSR}
"""Rows → the monomial of those rows with r columns."""

COMPONENT_INDEX = {name: index for index, name in enumerate(COMPONENTS)}
WIDTH = len(MONOMIALS)

Live = tuple[int, ...]
"""Bytes by component and monomial, flat: component · WIDTH + monomial."""


def monomial_values(spec: ModelSpec, batch_size: Any, seq_len: Any, rank: Any) -> tuple[Any, ...]:
    """Return the value of each monomial: of whole numbers, or of arrays of float64."""
    padded = -(-seq_len // 128) * 128
    tokens = batch_size * seq_len
    indices, parts = embedding_scratch(tokens, spec.vocab_size)
    position_indices, position_parts = embedding_scratch(seq_len, spec.max_position_embeddings)
    return (
        1,
        seq_len,
        tokens,
        seq_len * seq_len,
        tokens * seq_len,
        rank,
        tokens * rank,
        batch_size * padded,
        chunk_rows(tokens, spec.vocab_size, spec.hidden_size),
        tokens - batch_size,
        sum(indices),
        parts,
        sum(position_indices),
        position_parts,
    )


class Moment(NamedTuple):
    """What is alive when an allocation may set the peak."""

    phase: str
    live: Live
    total: tuple[int, ...]
    """The coefficient of each monomial, over all components."""

    def component_bytes(self, values: tuple[int, ...]) -> dict[str, int]:
        """Return component → bytes for the given monomial values."""
        live = self.live
        return {
            name: sum(live[index * WIDTH + m] * values[m] for m in range(WIDTH))
            for name, index in COMPONENT_INDEX.items()
        }


class Block:
    """One allocation: freed when its last owner lets go, as CPython does for torch's storages."""

    __slots__ = ("__weakref__", "bytes", "component", "copies", "ledger", "slot")

    def __init__(self, ledger: Ledger, monomial: int, bytes_: int, component: str) -> None:
        self.ledger = ledger
        self.bytes = bytes_
        self.component = component
        self.slot = COMPONENT_INDEX[component] * WIDTH + monomial
        self.copies = 1
        ledger.allocate(self)

    def relabel(self, component: str) -> None:
        """Count these bytes under another component from now on."""
        moved = self.bytes * self.copies
        self.ledger.live[self.slot] -= moved
        self.slot += (COMPONENT_INDEX[component] - COMPONENT_INDEX[self.component]) * WIDTH
        self.component = component
        self.ledger.live[self.slot] += moved

    def __del__(self) -> None:
        self.ledger.release(self)


class Ledger:
    """Live bytes, and the moments at which they may peak.

    Layers that are alike are run once and stand for ``copies`` of them. Live bytes change by the same amount from each
    copy to the next, so that a peak in any of them is one in the first or in the last, and their moments are enough:
    in forward the last runs on top of what all the others left behind; in backward the first frees its own share
    only, and the last runs when the others' shares are gone and their gradients are there.
    """

    def __init__(self) -> None:
        self.live: list[int] = [0] * (WIDTH * len(COMPONENTS))
        self.total: list[int] = [0] * WIDTH
        self.phase = "loaded"
        self.moments: list[Moment] = []
        self._rising = False
        self._watched: list[weakref.ref[Block]] | None = None
        self._repeat: list[int] | None = None
        self._repeat_started = 0

    def allocate(self, block: Block) -> None:
        """Count ``block`` in."""
        self._count(block.slot, block.bytes)
        self._rising = True
        if self._watched is not None:
            self._watched.append(weakref.ref(block))

    def release(self, block: Block) -> None:
        """Count ``block`` out."""
        self.mark()
        if block.copies > 1 and self._repeat is not None:
            self._count(block.slot, -block.bytes)
            self._repeat[block.slot] -= (block.copies - 1) * block.bytes
        else:
            self._count(block.slot, -block.copies * block.bytes)

    def _count(self, slot: int, bytes_: int) -> None:
        self.live[slot] += bytes_
        self.total[slot % WIDTH] += bytes_

    def mark(self) -> None:
        """Record the present as a moment, if anything was allocated since the last one."""
        if self._rising:
            self.moments.append(Moment(self.phase, tuple(self.live), tuple(self.total)))
            self._rising = False

    def enter(self, phase: str) -> None:
        """Begin ``phase``."""
        self.mark()
        self.phase = phase
        self._rising = True

    def begin_forward_repeat(self) -> None:
        """Begin the forward pass of the layer that stands for several."""
        self.mark()
        self._watched = []
        self._repeat_started = len(self.moments)

    def left_behind(self) -> list[Block]:
        """Return the blocks that were allocated since the repeat began and are still alive."""
        return [block for reference in self._watched or () if (block := reference()) is not None]

    def end_forward_repeat(self, blocks: list[Block], copies: int) -> None:
        """Let ``blocks`` stand for ``copies`` of themselves, and the moments of the last copy follow the first's."""
        self.mark()
        self._watched = None
        change = [0] * len(self.live)
        for block in blocks:
            change[block.slot] += (copies - 1) * block.bytes
            block.copies = copies
        self._add_shifted_moments(change)

    def _add_shifted_moments(self, change: list[int]) -> None:
        total = [sum(change[monomial::WIDTH]) for monomial in range(WIDTH)]
        for phase, live, live_total in self.moments[self._repeat_started :]:
            self.moments.append(Moment(phase, tuple(map(add, live, change)), tuple(map(add, live_total, total))))
        self.live = list(map(add, self.live, change))
        self.total = list(map(add, self.total, total))
        self._rising = True

    def begin_backward_repeat(self) -> None:
        """Begin the backward pass of the layer that stands for several."""
        self.mark()
        self._repeat = [0] * len(self.live)
        self._repeat_started = len(self.moments)

    def defer(self, block: Block, copies: int) -> None:
        """Count the gradients of the other copies in, once the repeat ends."""
        assert self._repeat is not None
        self._repeat[block.slot] += (copies - 1) * block.bytes

    @property
    def repeating(self) -> bool:
        """Whether the backward pass of a layer that stands for several is under way."""
        return self._repeat is not None

    def end_backward_repeat(self) -> None:
        """Let the other copies run: add the moments of the last of them, and what all of them leave."""
        self.mark()
        change = self._repeat
        assert change is not None
        self._repeat = None
        self._add_shifted_moments(change)
