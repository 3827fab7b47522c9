"""The replayed allocator against torch's own on a null GPU, after every event of random sequences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.bench.null_gpu.environment import null_gpu_environment
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.memory.allocator import CachingAllocator
from lorabench.estimator.memory.allocator_settings import read_settings
from tests.bench.null_gpu.conftest import Run
from tests.estimator.memory.test_allocator_settings import ACCEPTED, REFUSED

pytestmark = pytest.mark.cuda_build

MIB = 2**20
GPU = find_device("rtx-3060")
SETTINGS = [
    "",
    "expandable_segments:True",
    "max_split_size_mb:20",
    "max_split_size_mb:100,max_non_split_rounding_mb:64",
    "roundup_power2_divisions:[2:0,8:4,64:16,>:2]",
    "large_segment_size_mb:16,expandable_segments:True",
    "per_process_memory_fraction:0.5",
    "garbage_collection_threshold:0.6,per_process_memory_fraction:0.8",
    "garbage_collection_threshold:0.3,per_process_memory_fraction:0.5,max_split_size_mb:200",
    "expandable_segments:True,per_process_memory_fraction:0.4,max_split_size_mb:64",
]
PROGRAM = """
import json, sys
import torch

torch.cuda.init()

def counts():
    stats = torch._C._cuda_memoryStats(0)
    return [stats[name]["all"]["current"] for name in ("allocated_bytes", "reserved_bytes")]

for line in sys.stdin:
    held, seen = {}, []
    for key, size in json.loads(line):
        if size < 0:
            torch.cuda.empty_cache()
        elif size:
            try:
                held[key] = torch.cuda.caching_allocator_alloc(size)
            except torch.OutOfMemoryError:
                pass
        elif key in held:
            torch.cuda.caching_allocator_delete(held.pop(key))
        seen.append(counts())
    for pointer in held.values():
        torch.cuda.caching_allocator_delete(pointer)
    torch.cuda.empty_cache()
    print(json.dumps(seen), flush=True)
"""
Events = list[tuple[int, int]]
"""(key, bytes) allocates, (key, 0) frees, (0, -1) empties the cache."""
Ask = Callable[[Events], list[list[int]]]


@pytest.fixture(scope="module", params=SETTINGS)
def allocator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Ask]]:
    """Return settings, and a function that returns what torch with these settings counts after each event."""
    variables = null_gpu_environment(GPU, tmp_path_factory.mktemp("notes"))
    variables |= {"PYTORCH_CUDA_ALLOC_CONF": request.param}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        write, read = process.stdin, process.stdout

        def ask(events: Events) -> list[list[int]]:
            write.write(json.dumps(events) + "\n")
            write.flush()
            answer: list[list[int]] = json.loads(read.readline())
            return answer

        yield request.param, ask
        write.close()


def replayed(text: str, events: Events) -> list[list[int]]:
    """Return what the replay counts after each event."""
    allocator = CachingAllocator(read_settings(text).on(GPU.usable_bytes), capacity=GPU.usable_bytes)
    held: set[int] = set()
    seen = []
    for key, size in events:
        if size < 0:
            allocator.empty_cache()
        elif size:
            if allocator.allocate(key, size):
                held.add(key)
        elif key in held:
            allocator.free(key)
            held.remove(key)
        seen.append([allocator.allocated, allocator.reserved])
    return seen


@st.composite
def sequences(draw: st.DrawFn) -> Events:
    """Return allocations of all pools, up to more than the GPU has, and frees in any order."""
    sizes = st.one_of(
        st.integers(1, 4096),
        st.integers(1, 2 * MIB),
        st.integers(1, 40 * MIB),
        st.integers(1, 4000 * MIB),
        st.integers(1, 400).map(lambda count: count * MIB),
    )
    steps = draw(st.lists(st.tuples(st.integers(0, 99), sizes, st.integers(0, 2**20)), min_size=5, max_size=100))
    events: Events = []
    live: list[int] = []
    for number, (kind, size, choice) in enumerate(steps):
        if kind < 2:
            events.append((0, -1))
        elif kind < 50 and live:
            events.append((live.pop(choice % len(live)), 0))
        else:
            live.append(number)
            events.append((number, size))
    return events


@settings(max_examples=100, deadline=None)
@given(sequences())
def test_the_replay_counts_what_torch_counts_after_every_event(allocator: tuple[str, Ask], events: Events) -> None:
    text, ask = allocator
    assert replayed(text, events) == ask(events)


def test_the_replay_takes_that_one_of_equal_blocks_that_torch_takes(allocator: tuple[str, Ask]) -> None:
    """Two free halves of segments, of which the younger lies where an older segment was; then the cache is emptied."""
    text, ask = allocator
    half = 100 * MIB
    events = [(1, half), (2, 2 * half), (2, 0), (3, half), (4, half), (1, 0), (0, -1)]
    events += [(5, half), (4, 0), (5, 0), (6, half), (0, -1)]
    assert replayed(text, events) == ask(events)


def test_torch_reads_settings_as_the_replay_does(run_on: Run) -> None:
    told = run_on(
        "rtx-3060",
        """
        said = {}
        for text in json.loads(sys.argv[1]):
            torch.cuda.memory._set_allocator_settings("large_segment_size_mb:20")  # else it stays as it was set
            try:
                torch.cuda.memory._set_allocator_settings(text)
                said[text] = None
            except ValueError as error:
                said[text] = str(error)
        tell(said=said)
        """,
        json.dumps([*ACCEPTED, *REFUSED]),
    ).values
    assert {text for text, said in told["said"].items() if said is None} == set(ACCEPTED)
    for text, words in REFUSED.items():
        assert words in told["said"][text]


def test_torch_heeds_the_older_variable_if_both_are_set(run_on: Run) -> None:
    told = run_on(
        "rtx-3060",
        """
        held = torch.empty(33 * 2**20, dtype=torch.uint8, device="cuda")
        tell(allocated=torch.cuda.memory_allocated())
        """,
        environment={
            "PYTORCH_CUDA_ALLOC_CONF": "roundup_power2_divisions:4",
            "PYTORCH_ALLOC_CONF": "roundup_power2_divisions:2",
        },
    ).values
    assert told["allocated"] == 40 * MIB  # 48 with two divisions
