"""The allocator's replay, against sequences worked out by hand and against what must hold for any."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.estimator.memory.allocator import CachingAllocator
from lorabench.estimator.quantities import MIB

KIB = 1024


class Peaks(NamedTuple):
    """What the allocator reports after a run, in bytes."""

    allocated: int
    reserved: int
    out_of_memory: bool
    """Whether an allocation found no room; the replay stops there."""


def replay(
    allocations: Iterable[tuple[int, int]], *, capacity: int | None = None, expandable_segments: bool = False
) -> Peaks:
    """Serve ``allocations`` in order: (key, bytes) allocates, (key, 0) frees what the key stands for."""
    allocator = CachingAllocator(capacity=capacity, expandable_segments=expandable_segments)
    for key, size in allocations:
        if size == 0:
            allocator.free(key)
        elif not allocator.allocate(key, size):
            return Peaks(allocator.peak_allocated, allocator.peak_reserved, out_of_memory=True)
    return Peaks(allocator.peak_allocated, allocator.peak_reserved, out_of_memory=False)


@pytest.mark.parametrize(
    ("sizes", "allocated", "reserved"),
    [
        ([1], 512, 2 * MIB),
        ([513], 1024, 2 * MIB),
        ([MIB, MIB], 2 * MIB, 2 * MIB),  # the small pool's segments of 2 MiB
        ([MIB, MIB, 1], 2 * MIB + 512, 4 * MIB),
        ([MIB + 1], MIB + 512, 20 * MIB),  # the large pool's of 20 MiB
        ([9 * MIB, 9 * MIB], 18 * MIB, 20 * MIB),
        ([9 * MIB, 9 * MIB, 9 * MIB], 27 * MIB, 40 * MIB),
        ([10 * MIB], 10 * MIB, 10 * MIB),  # from here on a segment of one's own
        ([33 * MIB], 34 * MIB, 34 * MIB),  # the last MiB is not split off, and counts as allocated
        ([31 * MIB - 1, 2 * MIB], 34 * MIB, 52 * MIB),
        ([30 * MIB + 1, MIB + 1], 32 * MIB, 32 * MIB),  # what is left of 32 MiB serves the second, all of it
    ],
)
def test_what_segments_allocations_take(sizes: list[int], allocated: int, reserved: int) -> None:
    assert replay(enumerate(sizes)) == (allocated, reserved, False)


def test_a_freed_block_serves_again() -> None:
    again = [(0, 30 * MIB), (0, 0), (1, 30 * MIB), (1, 0), (2, 20 * MIB), (3, 9 * MIB)]
    assert replay(again) == (30 * MIB, 30 * MIB, False)


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    for key, size in enumerate([40 * MIB, 12 * MIB, 20 * MIB]):
        allocator.allocate(key, size)
    for key in range(3):
        allocator.free(key)
    allocator.allocate(3, 11 * MIB)
    assert allocator.in_use[3].size == 12 * MIB  # what is left is at most 1 MiB, so it is no block of its own
    allocator.allocate(4, 13 * MIB)
    assert allocator.in_use[4].size == 13 * MIB
    assert allocator.reserved == 72 * MIB


def test_neighbours_merge_when_they_are_freed() -> None:
    allocator = CachingAllocator()
    for key in range(3):
        allocator.allocate(key, 6 * MIB)
    for key in (0, 2, 1):
        allocator.free(key)
    assert allocator.free_blocks[True].order == [(20 * MIB, 0)]
    assert (
        replay([(0, 6 * MIB), (1, 6 * MIB), (2, 6 * MIB), (0, 0), (2, 0), (1, 0), (3, 20 * MIB)]).reserved == 20 * MIB
    )


def test_a_hole_that_is_too_small_is_fragmentation() -> None:
    holes = [(0, 8 * MIB), (1, 8 * MIB), (0, 0), (2, 9 * MIB)]
    assert replay(holes).reserved == 40 * MIB


def test_cached_segments_are_given_back_before_there_is_no_room() -> None:
    growing = [(0, 30 * MIB), (0, 0), (1, 40 * MIB)]
    assert replay(growing) == (40 * MIB, 70 * MIB, False)
    assert replay(growing, capacity=60 * MIB) == (40 * MIB, 40 * MIB, False)
    assert replay(growing, capacity=39 * MIB).out_of_memory


def test_expandable_segments_grow_by_pages_and_leave_no_holes_between_segments() -> None:
    growing = [(0, 30 * MIB), (1, MIB), (0, 0), (2, 50 * MIB)]
    # 30 MiB take two pages of 20; the 50 need one page more, next to the freed 40.
    assert replay(growing, expandable_segments=True) == (51 * MIB, (2 + 60) * MIB, False)
    assert replay(growing).reserved == (2 + 30 + 50) * MIB


def test_expandable_segments_give_back_single_pages() -> None:
    middle = [(0, 20 * MIB), (1, 20 * MIB), (2, 20 * MIB), (1, 0), (3, 40 * MIB)]
    assert replay(middle, expandable_segments=True).reserved == 100 * MIB
    assert replay(middle, expandable_segments=True, capacity=80 * MIB) == (80 * MIB, 80 * MIB, False)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(1, 4 * KIB) | st.integers(1, 3 * MIB) | st.integers(1, 30 * MIB)),
        st.tuples(st.just("free"), st.integers(0, 1000)),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(actions, st.booleans(), st.none() | st.integers(20 * MIB, 200 * MIB))
def test_blocks_cover_what_is_reserved_and_never_overlap(
    actions: list[tuple[str, int]], expandable_segments: bool, capacity: int | None
) -> None:
    allocator = CachingAllocator(capacity=capacity, expandable_segments=expandable_segments)
    live: dict[int, int] = {}
    for number, (action, value) in enumerate(actions):
        if action == "allocate":
            if allocator.allocate(number, value):
                live[number] = value
        elif live:
            key = list(live)[value % len(live)]
            allocator.free(key)
            del live[key]
        blocks = [(block.large, block.address, block.size) for block in allocator.in_use.values()]
        blocks += [(large, at, size) for large, pool in allocator.free_blocks.items() for size, at in pool.order]
        for (pool, address, size), (next_pool, next_address, _) in pairwise(sorted(blocks)):
            assert pool != next_pool or address + size <= next_address
        assert sum(size for _, _, size in blocks) == allocator.reserved
        assert all(allocator.in_use[key].size >= size for key, size in live.items())
        assert sum(live.values()) <= allocator.allocated <= allocator.reserved <= (capacity or allocator.reserved)
    for key in live:
        allocator.free(key)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


def test_a_segment_gets_the_lowest_free_addresses() -> None:
    allocator = CachingAllocator()
    for key, size in enumerate([12 * MIB, 14 * MIB, 16 * MIB, 18 * MIB]):
        allocator.allocate(key, size)
    allocator.free(0)
    allocator.free(1)
    allocator.free(3)
    allocator.empty_cache()  # two neighbours are free, and what comes last
    allocator.allocate(4, 24 * MIB)
    allocator.allocate(5, 12 * MIB)
    assert allocator.in_use[4].address == 0
    assert allocator.in_use[5].address == (12 + 14 + 16) * MIB
