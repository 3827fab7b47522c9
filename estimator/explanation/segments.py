"""The allocator's segments at the peak: what each was taken for, and how much of it is free."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.itemised import Item, Maker
from lorabench.estimator.closed_form.masks import every_layer
from lorabench.estimator.closed_form.replay import MicroBatch, Replay, Training
from lorabench.estimator.closed_form.step import walk_layers
from lorabench.estimator.closed_form.walk import EventLedger, WalkingTape, chunks_of, rows_of
from lorabench.estimator.explanation.lines import Derivation, Line
from lorabench.estimator.explanation.tensor_names import tensor_name
from lorabench.estimator.memory.allocator import CachingAllocator, MemoryBlock, Pool
from lorabench.estimator.memory.allocator_settings import AllocatorSettings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.recipes.resolved import ResolvedRecipe

MOST_LINES = 12
"""Kinds of segments with a line of their own; the rest share one."""


class _Kind(NamedTuple):
    """Segments of one size that were taken for tensors of one name."""

    name: str
    size: int


class _Reached(Exception):  # noqa: N818 - it ends a replay as StopIteration ends a loop
    pass


class _Watched(CachingAllocator):
    """An allocator that knows which allocation each segment was taken for.

    In the steps it stops at the first moment when so much is ``reserved``, and ``allocated`` too if that is given.
    """

    def __init__(self, settings: AllocatorSettings, reserved: int, allocated: int | None) -> None:
        super().__init__(settings)
        self.taken_for: dict[int, int] = {}
        """Address of a segment → key of the allocation."""
        self.watching = False
        self._wanted = reserved, allocated
        self._key = 0

    def allocate(self, key: int, size: int) -> bool:
        self._key = key
        served = super().allocate(key, size)
        reserved, allocated = self._wanted
        if self.watching and self.reserved == reserved and allocated in (None, self.allocated):
            raise _Reached
        return served

    def _new_segment(self, size: int, pool: Pool) -> MemoryBlock | None:
        segment = super()._new_segment(size, pool)
        if segment is not None:
            self.taken_for[segment.address] = self._key
        return segment


class _NamingReplay(Replay):
    """A replay that knows what each key stands for."""

    _allocator: _Watched

    def __init__(self, training: Training, allocator: _Watched) -> None:
        super().__init__(training, allocator)
        self._ranges: list[tuple[int, bool | None]] = [(0, None)]
        """First key of each micro-batch, and whether gradients exist already; before them come the weights."""
        self._doing: list[str] = []
        self._held: dict[int, str] = {}

    def name(self, key: int, resolved: ResolvedRecipe, compute_capability: str | None) -> str:
        """Return what the allocation of ``key`` is."""
        if key in self._held:
            return self._held[key]
        first, accumulating = self._ranges[bisect_right(self._ranges, key, key=lambda each: each[0]) - 1]
        if accumulating is None:
            return "weights"
        setup = Setup(resolved, "cuda", compute_capability)
        item = _items(setup, chunks_of(resolved), accumulating).get(key - first)
        if item is None:
            return "token ids and labels"
        name = tensor_name(item, resolved.recipe)
        return f"{name.module or name.place}, {name.what}"

    def _load(self) -> None:
        super()._load()
        self._allocator.watching = True

    def _small_pool_serves_another_step(self) -> bool:
        return False  # a moment of the step needs both pools

    def _hold(self, size: int) -> int:
        self._held[self._keys + 1] = self._doing[-1] if self._doing else "buffer of a sum"
        return super()._hold(size)

    def _make_states(self, tensors: Sequence[TrainedTensors]) -> None:
        self._do("optimizer states", lambda: super(_NamingReplay, self)._make_states(tensors))

    def _temporaries(self, *, first: bool) -> None:
        self._do("temporaries of the optimizer", lambda: super(_NamingReplay, self)._temporaries(first=first))

    def _clip(self) -> None:
        self._do("norms of gradients", super()._clip)

    def _reach(self, mark: Any) -> None:
        self._do("cuBLAS workspace", lambda: super(_NamingReplay, self)._reach(mark))

    def _micro_batch(self, walked: MicroBatch) -> list[int]:
        self._ranges.append((self._keys + 1, walked is not self._training.micro_batches[0]))
        return super()._micro_batch(walked)

    def _do(self, what: str, work: Any) -> None:
        self._doing.append(what)
        work()
        self._doing.pop()


class _NamingTape(WalkingTape):
    """A walk that notes what each block is."""

    def __init__(self, ledger: EventLedger) -> None:
        super().__init__(ledger)
        self.items: dict[int, Item] = {}

    def new(self, *args: Any, **options: Any) -> Tensor:
        tensor = super().new(*args, **options)
        assert tensor.block is not None
        name, features, dtype = options.get("name", ""), tensor.features, tensor.dtype
        maker = Maker(self.place, self.operation, name, self.in_backward, features, dtype)
        self.items[tensor.block.number] = Item(*tensor.block.slot, maker, 0)
        return tensor


def segments(
    resolved: ResolvedRecipe,
    memory: Breakdown,
    settings: AllocatorSettings,
    compute_capability: str | None = None,
    multiprocessors: int | None = None,
) -> Derivation:
    """Return the lines of the segments when most is allocated; their sum is the reserved bytes.

    If less than the peak of reserved ``memory`` is reserved then, they are those at the peak of reserved memory.
    ``compute_capability`` and ``multiprocessors``: as in `Training`. With expandable segments, which have no size of
    their own, there are no lines.
    """
    title = "Segments at the peak"
    if settings.expandable_segments:
        return Derivation(title, (), remark="With expandable_segments each pool is one segment, mapped page by page.")
    training = Training(resolved, compute_capability, multiprocessors)
    assert memory.peak_reserved_bytes is not None
    for allocated in (memory.peak_allocated_bytes, None):
        allocator = _Watched(settings, memory.peak_reserved_bytes, allocated)
        replay = _NamingReplay(training, allocator)
        try:
            replay.load()
            replay.train()
        except _Reached:
            break
    counts: dict[_Kind, list[int]] = {}
    for address, size, free in _uses(allocator):
        name = replay.name(allocator.taken_for[address], resolved, compute_capability)
        counts.setdefault(_Kind(name, size), []).append(free)
    by_size = sorted(counts.items(), key=lambda entry: -entry[0].size * len(entry[1]))
    lines = [_line(kind, len(free), sum(free)) for kind, free in by_size[:MOST_LINES]]
    rest = by_size[MOST_LINES:]
    if rest:
        number = sum(len(free) for _, free in rest)
        bytes_ = sum(kind.size * len(free) for kind, free in rest)
        free = sum(map(sum, (free for _, free in rest)))
        lines.append(Line("others", f"{number} segments", f"{bytes_:,}", bytes_, f"free: {free:,} B"))
    remark = (
        "The allocator takes a segment from the device if no free block is large enough. A segment has the name of its "
        "first tensor; later ones reuse it. What is free stays reserved."
    )
    return Derivation(title, tuple(lines), remark=remark)


def _line(kind: _Kind, count: int, free: int) -> Line:
    return Line(kind.name, "segments · size", f"{count:,} · {kind.size:,}", count * kind.size, f"free: {free:,} B")


def _uses(allocator: CachingAllocator) -> Iterator[tuple[int, int, int]]:
    """Yield address, bytes and free bytes of each segment."""
    free_blocks = [*allocator.small.blocks, *allocator.large.blocks]
    for first in (*allocator.in_use.values(), *free_blocks):
        if first.preceding is not None:
            continue
        size = free = 0
        block: MemoryBlock | None = first
        while block is not None:
            size += block.size
            free += block.size if block.free else 0
            block = block.following
        yield first.address, size, free


@lru_cache(2)
def _items(setup: Setup, chunks: int, accumulating: bool) -> dict[int, Item]:
    tape = _NamingTape(EventLedger())
    resolved = setup.resolved.replaced(gradient_accumulation=2 if accumulating else 1)
    walk_layers(resolved, setup.compute_capability, tape, every_layer, rows_of(chunks))
    return tape.items
