"""The events of many layers that repeat, from a walk of a few.

What repeats is a block of one layer or of several, such as five with a sliding window and one without. Below,
*layer* is such a block. Each takes part in a step twice: in forward, and in reverse order in backward. When autocast
ends, it frees the weights that it cast, layer by layer. A walk is thus cut into parts, of one layer each or of what is
outside the layers.

Two parts are alike if they allocate the same, and free blocks of the same places: of their own layer, of a neighbour,
or outside the layers. If the inner layers of a short walk are alike, more such layers would be too. Their events are
those of one inner layer with other numbers of blocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

FEW = 6
"""Layers of a short walk: the outer ones, and four inner ones that must be alike."""
FEW_BLOCKS = 4
"""The same if each is a block of several layers, of which two inner ones must be alike."""
OUTSIDE = -1
"""The layer of parts that are outside the layers."""

Events = Sequence[tuple[int, int, object]]
"""(block, n, size), as in a walk. It is a free if the size is None. The block is negative if it has no number."""


class Pattern(NamedTuple):
    """How layers repeat: ``first`` ones, blocks of ``period`` layers, and the ``last`` ones, which continue them."""

    first: int
    period: int
    blocks: int
    last: int

    @property
    def few(self) -> int:
        """How many layers or blocks of layers a short walk has, with the first and the last ones as one block each."""
        return FEW if self.period == 1 else FEW_BLOCKS

    @property
    def starts(self) -> list[int]:
        """The layers of a short walk at which a block begins."""
        return [0, *(self.first + block * self.period for block in range(self.few - 1))]

    def kept(self, layers: int) -> list[int]:
        """Return the layers that a short walk runs, of all ``layers``."""
        return [*range(self.starts[-1]), *range(layers - self.last, layers)]


def find_pattern(kinds: Sequence[Hashable]) -> Pattern | None:
    """Return how layers of these ``kinds`` repeat, for the shortest walk; None if no walk would be shorter."""
    layers, best = len(kinds), None
    alike = len(set(kinds)) == 1
    for period in range(1, layers // FEW_BLOCKS + 1):
        unlike = [at for at in range(layers - period) if kinds[at] != kinds[at + period]]
        first = unlike[-1] + 1 if unlike else 0
        # The first block has each kind, since the first layer of a kind frees last what all of the kind share.
        first = max(first, 1) if alike else first + period
        blocks = (layers - first - 1) // period
        found = Pattern(first, period, blocks, layers - first - blocks * period)
        if blocks > found.few - 2 and (best is None or found.starts[-1] + found.last < best.starts[-1] + best.last):
            best = found
    return best


class Part(NamedTuple):
    """Consecutive events."""

    layer: int
    kind: str
    """``forward``, ``backward`` or another word for what the layers do; any word outside the layers."""
    start: int
    """The number of events before it."""


class Repetition(NamedTuple):
    """How a walk of all layers follows from one of a few."""

    bounds: list[int]
    """The number of events before each part of the short walk, and of all."""
    owners: list[int]
    """Block of the short walk → the part that allocates it."""
    copies: list[tuple[int, list[int]]]
    """For each part of the walk of all layers: the part that it repeats; and what to add to the number of a block, by
    the part that allocates it, and 0 for a block without a number."""

    def all_events(self, few: Sequence[int]) -> list[int]:
        """Return the blocks of all layers' events from those of the few's."""
        parts = [
            [(block, self.owners[block] if block >= 0 else -1) for block in few[start:end]]
            for start, end in pairwise(self.bounds)
        ]
        return [block + shifts[owner] for number, shifts in self.copies for block, owner in parts[number]]

    def all_sizes(self, few: Sequence[int]) -> list[int]:
        """Return the bytes of all layers' events from those of the few's."""
        found: list[int] = []
        for number, _ in self.copies:
            found += few[self.bounds[number] : self.bounds[number + 1]]
        return found

    def all_blocks(self, few: Sequence[int]) -> list[int]:
        """Return the blocks of all layers that correspond to blocks of the few."""
        return [block + shifts[part] for part, shifts in self.copies for block in few if self.owners[block] == part]

    def moment(self, events: int) -> int | None:
        """Return the number of events before a moment, from that in the short walk; None if the moment is repeated."""
        part = max(number for number, start in enumerate(self.bounds[:-1]) if start <= events)
        passed, found = 0, []
        for number, _ in self.copies:
            if number == part:
                found.append(passed + events - self.bounds[part])
            passed += self.bounds[number + 1] - self.bounds[number]
        return found[0] if len(found) == 1 else None


def repeat(parts: Sequence[Part], events: Events, layers: int, few: int = FEW) -> Repetition | None:
    """Return how the events of ``layers`` layers follow from those of ``few``; None if the inner ones are not alike."""
    repeated = few // 2 - 1
    owner_layers = [
        part.layer
        for part, (start, end) in zip(parts, pairwise([*(part.start for part in parts), len(events)]), strict=True)
        for block, _, size in events[start:end]
        if size is not None and block >= 0
    ]
    parts = list(_cut(parts, events, owner_layers, few))
    bounds = [*(part.start for part in parts), len(events)]
    owners = [
        number
        for number, (start, end) in enumerate(pairwise(bounds))
        for block, _, size in events[start:end]
        if size is not None and block >= 0
    ]
    sizes = [owners.count(number) for number in range(len(parts))]
    firsts = [0] * len(parts)
    for block in reversed(range(len(owners))):
        firsts[owners[block]] = block
    contents = {}
    for part, (start, end) in zip(parts, pairwise(bounds), strict=True):
        content = _content(part, events[start:end], parts, owners, firsts, sizes, few)
        if content is None:
            return None
        contents[part.layer, part.kind] = content
    inner = [(layer, part.kind) for part in parts if part.layer == repeated for layer in range(1, few - 1)]
    if any(contents.get((layer, kind)) != contents[repeated, kind] for layer, kind in inner):
        return None
    return Repetition(bounds, owners, _copies(parts, firsts, sizes, layers - few, repeated))


def _cut(parts: Sequence[Part], events: Events, owner_layers: Sequence[int], few: int) -> Iterator[Part]:
    """Yield the parts; those outside the layers are cut if they free blocks of every layer, layer by layer."""
    ends = [*(part.start for part in parts[1:]), len(events)]
    for part, end in zip(parts, ends, strict=True):
        yield part
        if part.layer != OUTSIDE:
            continue
        freed = [
            OUTSIDE if size is not None or block < 0 else owner_layers[block]
            for block, _, size in events[part.start : end]
        ]
        runs, position = [], part.start
        for layer, run in groupby(freed):
            runs.append((layer, position))
            position += len(list(run))
        runs.append((OUTSIDE, position))
        every = list(range(few))
        for first in range(len(runs) - few):
            if [layer for layer, _ in runs[first : first + few]] in (every, every[::-1]):
                for layer, start in runs[first : first + few]:
                    yield Part(layer, f"freed in {part.kind}", start)
                if runs[first + few][1] < end:
                    yield Part(OUTSIDE, f"after {part.kind}", runs[first + few][1])
                break


def _from_start(part: Part, owner: Part) -> bool:
    """Return whether a part counts the blocks of ``owner`` from its first one. Else it counts from the last one.

    The outer layers of a walk may be larger blocks of layers than the inner ones: a part refers to their nearest layer.
    """
    return owner.kind == "forward" and owner.layer > part.layer


def _content(
    part: Part,
    events: Events,
    parts: Sequence[Part],
    owners: Sequence[int],
    firsts: Sequence[int],
    sizes: Sequence[int],
    few: int,
) -> list[object] | None:
    """Return what a part does, in terms that are equal for parts that are alike; None if it cannot be repeated."""
    content: list[object] = []
    for block, n, size in events:
        if size is not None:
            content.append((n, size))
            continue
        owner = parts[owners[block]]
        distance = None
        if owner.layer != OUTSIDE and part.layer != OUTSIDE:
            distance = owner.layer - part.layer
            if abs(distance) > 1:
                return None
        elif owner.layer not in (OUTSIDE, 0, few - 2, few - 1):
            return None  # what is outside the layers frees a block of an inner one
        end = 0 if _from_start(part, owner) or distance is None else sizes[owners[block]]
        content.append((distance, owner.kind, block - firsts[owners[block]] - end))
    return content


def _copies(
    parts: Sequence[Part], firsts: Sequence[int], sizes: Sequence[int], more: int, repeated: int
) -> list[tuple[int, list[int]]]:
    """Return `Repetition.copies`. ``more``: how many layers layer ``repeated`` stands for beside itself."""
    order: list[tuple[int, int]] = []
    """Of each part of the walk of all layers: its layer, and the part that it repeats."""
    for number, part in enumerate(parts):
        if part.layer == repeated:
            alike = range(repeated, repeated + more + 1)
            descending = parts[number - 1].layer > repeated
            order += [(layer, number) for layer in (reversed(alike) if descending else alike)]
        else:
            order.append((part.layer + more if part.layer > repeated else part.layer, number))
    begins: dict[tuple[int, str], tuple[int, int]] = {}
    """For each part of the walk of all layers: its first block, and their number."""
    passed = 0
    for layer, number in order:
        begins[layer, parts[number].kind] = passed, sizes[number]
        passed += sizes[number]
    found = []
    for layer, number in order:
        shifts = []
        for owner, first, size in zip(parts, firsts, sizes, strict=True):
            there = owner.layer
            if there != OUTSIDE:
                outer = there + more if there > repeated else there
                there = outer if parts[number].layer == OUTSIDE else layer + there - parts[number].layer
            begin, blocks = begins.get((there, owner.kind), (first, size))
            shifts.append(begin - first + (0 if _from_start(parts[number], owner) else blocks - size))
        found.append((number, [*shifts, 0]))
    return found
