"""The events of many identical layers, from a walk of the first few.

Each layer takes part in a step twice: in forward, and in reverse order in backward. When autocast ends, it frees the
weights that it cast, layer by layer. A walk is thus cut into parts, of one layer each or of what is outside the layers.

Two parts are alike if they allocate the same, and free blocks of the same places: of their own layer, of a neighbour,
or outside the layers. If the inner layers of a short walk are alike, more such layers would be too. Their events are
those of one inner layer with other numbers of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

FEW = 6
"""Layers of a short walk: the outer ones, and four inner ones that must be alike. `REPEATED` stands for all others."""
REPEATED = 2
OUTSIDE = -1
"""The layer of parts that are outside the layers."""

Events = Sequence[tuple[int, int, object]]
"""(block, n, size), as in a walk. It is a free if the size is None. The block is negative if it has no number."""


class Part(NamedTuple):
    """Consecutive events."""

    layer: int
    kind: str
    """``forward``, ``backward`` or another word for what the layers do; any word outside the layers."""
    start: int
    """The number of events before it."""


class Repetition(NamedTuple):
    """How a walk of all layers follows from one of `FEW`."""

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


def repeat(parts: Sequence[Part], events: Events, layers: int) -> Repetition | None:
    """Return how the events of ``layers`` layers follow from those of `FEW`; None if the inner layers are not alike."""
    owner_layers = [
        part.layer
        for part, (start, end) in zip(parts, pairwise([*(part.start for part in parts), len(events)]), strict=True)
        for block, _, size in events[start:end]
        if size is not None and block >= 0
    ]
    parts = list(_cut(parts, events, owner_layers))
    bounds = [*(part.start for part in parts), len(events)]
    owners = [
        number
        for number, (start, end) in enumerate(pairwise(bounds))
        for block, _, size in events[start:end]
        if size is not None and block >= 0
    ]
    firsts = [0] * len(parts)
    for block in reversed(range(len(owners))):
        firsts[owners[block]] = block
    contents = {}
    for part, (start, end) in zip(parts, pairwise(bounds), strict=True):
        content = _content(part, events[start:end], parts, owners, firsts)
        if content is None:
            return None
        contents[part.layer, part.kind] = content
    inner = [(layer, part.kind) for part in parts if part.layer == REPEATED for layer in range(1, FEW - 1)]
    if any(contents.get((layer, kind)) != contents[REPEATED, kind] for layer, kind in inner):
        return None
    return Repetition(bounds, owners, _copies(parts, owners, firsts, layers))


def _cut(parts: Sequence[Part], events: Events, owner_layers: Sequence[int]) -> Iterator[Part]:
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
        every = list(range(FEW))
        for first in range(len(runs) - FEW):
            if [layer for layer, _ in runs[first : first + FEW]] in (every, every[::-1]):
                for layer, start in runs[first : first + FEW]:
                    yield Part(layer, f"freed in {part.kind}", start)
                if runs[first + FEW][1] < end:
                    yield Part(OUTSIDE, f"after {part.kind}", runs[first + FEW][1])
                break


def _content(
    part: Part, events: Events, parts: Sequence[Part], owners: Sequence[int], firsts: Sequence[int]
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
        elif owner.layer not in (OUTSIDE, 0, FEW - 2, FEW - 1):
            return None  # what is outside the layers frees a block of an inner one
        content.append((distance, owner.kind, block - firsts[owners[block]]))
    return content


def _copies(
    parts: Sequence[Part], owners: Sequence[int], firsts: Sequence[int], layers: int
) -> list[tuple[int, list[int]]]:
    """Return `Repetition.copies`."""
    more = layers - FEW
    order: list[tuple[int, int]] = []
    """Of each part of the walk of all layers: its layer, and the part that it repeats."""
    for number, part in enumerate(parts):
        if part.layer == REPEATED:
            repeated = range(REPEATED, REPEATED + more + 1)
            descending = parts[number - 1].layer > REPEATED
            order += [(layer, number) for layer in (reversed(repeated) if descending else repeated)]
        else:
            order.append((part.layer + more if part.layer > REPEATED else part.layer, number))
    sizes = [owners.count(number) for number in range(len(parts))]
    begins: dict[tuple[int, str], int] = {}
    passed = 0
    for layer, number in order:
        begins[layer, parts[number].kind] = passed
        passed += sizes[number]
    found = []
    for layer, number in order:
        shifts = []
        for owner, first in zip(parts, firsts, strict=True):
            there = owner.layer
            if there != OUTSIDE:
                outer = there + more if there > REPEATED else there
                there = outer if parts[number].layer == OUTSIDE else layer + there - parts[number].layer
            shifts.append(begins.get((there, owner.kind), first) - first)
        found.append((number, [*shifts, 0]))
    return found
