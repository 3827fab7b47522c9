"""The allocator's replay, against sequences worked out by hand and against what must hold for any."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.estimator.memory.allocator import CachingAllocator
from lorabench.estimator.memory.allocator_settings import EXPANDABLE, read_settings
from lorabench.estimator.quantities import MIB

KIB = 1024


class Peaks(NamedTuple):
    """What the allocator reports after a run, in bytes."""

    allocated: int
    reserved: int
    out_of_memory: bool
    """Whether an allocation found no room; the replay stops there."""


def replay(
    allocations: Iterable[tuple[int, int]], text: str = "", *, capacity: int | None = None, device: int | None = None
) -> Peaks:
    """Serve ``allocations`` in order: (key, bytes) allocates, (key, 0) frees what the key stands for.

    ``text`` has the allocator's settings; a limit is a share of the ``device``'s bytes.
    """
    allocator = CachingAllocator(read_settings(text).on(device), capacity=capacity)
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
    assert [block.size for block in allocator.large.blocks] == [20 * MIB]
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
    assert replay(growing, EXPANDABLE) == (51 * MIB, (2 + 60) * MIB, False)
    assert replay(growing).reserved == (2 + 30 + 50) * MIB


def test_expandable_segments_give_back_single_pages() -> None:
    middle = [(0, 20 * MIB), (1, 20 * MIB), (2, 20 * MIB), (1, 0), (3, 40 * MIB)]
    assert replay(middle, EXPANDABLE).reserved == 100 * MIB
    assert replay(middle, EXPANDABLE, capacity=80 * MIB) == (80 * MIB, 80 * MIB, False)


def test_blocks_beyond_max_split_size_serve_only_allocations_of_about_their_size() -> None:
    large = [(0, 100 * MIB), (0, 0)]
    assert replay([*large, (1, 30 * MIB)], "max_split_size_mb:64").reserved == 130 * MIB  # 30 is below 64
    assert replay([*large, (1, 30 * MIB)]).reserved == 100 * MIB
    # 100 - 85 MiB are less than 20 MiB, so 85 takes all of the block; 100 - 80 are not.
    assert replay([*large, (1, 85 * MIB)], "max_split_size_mb:64") == (100 * MIB, 100 * MIB, False)
    assert replay([*large, (1, 80 * MIB)], "max_split_size_mb:64") == (100 * MIB, 180 * MIB, False)
    wide = "max_split_size_mb:64,max_non_split_rounding_mb:40"
    assert replay([*large, (1, 80 * MIB)], wide) == (100 * MIB, 100 * MIB, False)


def test_of_blocks_that_are_not_split_no_more_are_given_back_than_an_allocation_needs() -> None:
    for size, reserved in [
        (76, 70 + 30 + 76),  # the block of 100 MiB is enough
        (150, 30 + 150),  # those of 100 and 70 MiB are
        (180, 180),  # they are not, so all go
    ]:
        allocator = CachingAllocator(read_settings("max_split_size_mb:64"), capacity=200 * MIB)
        for key, cached in enumerate([100, 70, 30]):
            assert allocator.allocate(key, cached * MIB)
        for key in range(3):
            allocator.free(key)
        assert allocator.allocate(3, size * MIB)
        assert allocator.reserved == reserved * MIB


@pytest.mark.parametrize(
    ("text", "size", "block"),
    [
        ("roundup_power2_divisions:4", 1200, 1536),  # not above 512 · 4 bytes: to 512
        ("roundup_power2_divisions:4", 2049, 2560),  # 2048, 2560, 3072, 3584, 4096
        ("roundup_power2_divisions:4", 33 * MIB, 40 * MIB),  # 32, 40, 48, 56, 64
        ("roundup_power2_divisions:1", 33 * MIB, 34 * MIB),  # one division is none: 34 MiB is the segment
        ("roundup_power2_divisions:2", 32 * MIB, 32 * MIB),
        ("roundup_power2_divisions:[64:2,128:8,>:0]", 33 * MIB, 48 * MIB),  # below the first interval as in it
        ("roundup_power2_divisions:[64:2,128:8,>:0]", 65 * MIB, 96 * MIB),
        ("roundup_power2_divisions:[64:2,128:8,>:0]", 129 * MIB, 144 * MIB),  # 128, 144, 160, …
        ("roundup_power2_divisions:[64:2,128:8,>:0]", 257 * MIB, 258 * MIB),
        ("large_segment_size_mb:32", 3 * MIB, 3 * MIB),
    ],
)
def test_sizes_are_rounded_up_to_divisions_between_powers_of_2(text: str, size: int, block: int) -> None:
    assert replay([(0, size)], text).allocated == block


def test_allocations_below_10_mib_share_segments_of_the_size_that_is_set() -> None:
    assert replay([(0, 9 * MIB), (1, 9 * MIB), (2, 9 * MIB)], "large_segment_size_mb:32").reserved == 32 * MIB
    assert replay([(0, 3 * MIB)], "large_segment_size_mb:32,expandable_segments:True").reserved == 32 * MIB


def test_a_limit_is_a_share_of_the_device() -> None:
    half = "per_process_memory_fraction:0.5"
    assert replay([(0, 60 * MIB), (0, 0), (1, 80 * MIB)], half, device=200 * MIB) == (80 * MIB, 80 * MIB, False)
    assert replay([(0, 60 * MIB), (1, 60 * MIB)], half, device=200 * MIB).out_of_memory


def test_old_segments_are_given_back_once_more_than_the_threshold_is_reserved() -> None:
    text = "garbage_collection_threshold:0.5,per_process_memory_fraction:0.5"
    freed = [(0, 30 * MIB), (1, 40 * MIB), (0, 0), (1, 0), (2, 40 * MIB), (2, 0)]
    # When 60 MiB are asked for, 70 are reserved, of which 30 have not been used for two searches and 40 for one. The
    # average is 1.5, so the 30 go, and these are more than the excess over half of 100 MiB.
    assert replay([*freed, (3, 60 * MIB)], text, device=200 * MIB).reserved == 100 * MIB
    assert replay([*freed, (3, 60 * MIB)]).reserved == 130 * MIB
    # A single segment is as old as the average.
    assert replay([(0, 60 * MIB), (0, 0), (1, 70 * MIB)], text, device=200 * MIB).reserved == 70 * MIB


actions = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(1, 4 * KIB) | st.integers(1, 3 * MIB) | st.integers(1, 30 * MIB)),
        st.tuples(st.just("free"), st.integers(0, 1000)),
    ),
    max_size=60,
)

SETTINGS = [
    "",
    EXPANDABLE,
    "max_split_size_mb:20",
    "roundup_power2_divisions:[2:4,8:0,>:2]",
    "per_process_memory_fraction:0.5,garbage_collection_threshold:0.5",
    "large_segment_size_mb:12,expandable_segments:True,per_process_memory_fraction:0.4",
]


@settings(max_examples=150)
@given(actions, st.sampled_from(SETTINGS), st.none() | st.integers(20 * MIB, 200 * MIB))
def test_blocks_cover_what_is_reserved_and_never_overlap(
    actions: list[tuple[str, int]], text: str, capacity: int | None
) -> None:
    allocator = CachingAllocator(read_settings(text).on(250 * MIB), capacity=capacity)
    live: dict[int, int] = {}
    for number, (action, value) in enumerate(actions):
        if action == "allocate":
            if allocator.allocate(number, value):
                live[number] = value
        elif live:
            key = list(live)[value % len(live)]
            allocator.free(key)
            del live[key]
        held = [*allocator.in_use.values(), *allocator.small.blocks, *allocator.large.blocks]
        blocks = [(block.pool.large, block.address, block.size) for block in held]
        for (pool, address, size), (next_pool, next_address, _) in pairwise(sorted(blocks)):
            assert pool != next_pool or address + size <= next_address
        assert sum(size for _, _, size in blocks) == allocator.reserved
        assert all(allocator.in_use[key].size >= size for key, size in live.items())
        assert sum(live.values()) <= allocator.allocated <= allocator.reserved <= (capacity or allocator.reserved)
    for key in live:
        allocator.free(key)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


@settings(max_examples=100)
@given(actions, actions, st.sampled_from(SETTINGS), st.none() | st.integers(20 * MIB, 200 * MIB))
def test_a_copy_and_its_original_go_on_by_themselves_from_the_same_state(
    before: list[tuple[str, int]], after: list[tuple[str, int]], text: str, capacity: int | None
) -> None:
    original = CachingAllocator(read_settings(text).on(250 * MIB), capacity=capacity)
    act(original, before)
    copy = original.copied()
    said = act(copy, after)
    assert act(original, after) == said
    assert state(original) == state(copy)


def act(allocator: CachingAllocator, actions: list[tuple[str, int]]) -> list[tuple[int, ...]]:
    """Return what is counted after each of ``actions``."""
    counted: list[tuple[int, ...]] = []
    for number, (action, value) in enumerate(actions, start=max(allocator.in_use, default=0) + 1):
        if action == "allocate":
            allocator.allocate(number, value)
        elif allocator.in_use:
            allocator.free(list(allocator.in_use)[value % len(allocator.in_use)])
        counted.append((allocator.allocated, allocator.peak_allocated, allocator.reserved, allocator.peak_reserved))
    return counted


def state(allocator: CachingAllocator) -> list[tuple[object, ...]]:
    """Return every block with its key, if it is in use."""
    free = [(0, block) for pool in (allocator.small, allocator.large) for block in (*pool.blocks, *pool.unmapped)]
    return sorted(
        (key, block.pool.large, block.address, block.size, block.free, block.mapped)
        for key, block in (*allocator.in_use.items(), *free)
    )


def test_of_equal_blocks_that_in_the_oldest_segment_is_taken() -> None:
    allocator = CachingAllocator()
    for key, size in enumerate([100 * MIB, 200 * MIB]):
        allocator.allocate(key, size)
    allocator.free(1)
    for key in (2, 3):  # both halves of the second segment
        allocator.allocate(key, 100 * MIB)
    allocator.free(0)
    allocator.empty_cache()
    allocator.allocate(4, 100 * MIB)  # a third segment, where the first one was
    allocator.free(3)
    allocator.free(4)
    allocator.allocate(5, 100 * MIB)
    allocator.empty_cache()
    assert allocator.reserved == 200 * MIB  # the third segment was free
