"""The CUDA caching allocator's history of a step, as a timeline and as a full snapshot."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabench.bench.measuring.meters.counted_step import thinned
from lorabench.bench.measuring.meters.meter import Timeline
from lorabench.bench.records.atomic_writes import write_atomically
from lorabench.bench.records.text import without_own_folders
from lorabench.estimator.errors import UserError

MOST_EVENTS = 1_000_000
"""Maximum number of events in one recording; a step has some thousands."""
FRAMES_KEPT = 16
"""Innermost Python frames per event: enough to reach the module. Full stacks make a step 12 to 166 MiB."""
BLOCK = 512
"""The allocator rounds every request up to a multiple of this (c10/cuda/CUDACachingAllocator, kMinBlockSize)."""


@contextmanager
def recording(*, stacks: bool) -> Iterator[Callable[[], Any]]:
    """Let the allocator record its events inside the context, optionally with Python ``stacks``.

    The yielded function returns the snapshot so far: ``segments`` and ``device_traces``.
    """
    import torch

    context = "all" if stacks else None
    record: Any = torch.cuda.memory._record_memory_history
    record("all", context=context, stacks="python", max_entries=MOST_EVENTS)
    try:
        yield torch.cuda.memory._snapshot
    finally:
        record(None)


def live_bytes(events: list[dict[str, Any]], allocated_before: int) -> Timeline:
    """Return (seconds, allocated bytes) after each of the allocator's ``events``, starting from ``allocated_before``.

    ``events`` are those of one device, in order. A block counts as its request rounded up to `BLOCK`, even if it is
    larger because the allocator does not split off a small rest.
    """
    live = allocated_before
    points: list[tuple[float, int]] = []
    for event in events:
        size = -(-event["size"] // BLOCK) * BLOCK
        if event["action"] == "alloc":
            live += size
        elif event["action"] == "free_requested":
            live -= size
        else:
            continue
        points.append(((event["time_us"] - events[0]["time_us"]) / 1e6, live))
    return thinned(points)


def record_step(step: Callable[[], object], path: Path) -> None:
    """Run ``step`` and write all events of the allocator to ``path``, with their stacks."""
    import torch

    with recording(stacks=True) as snapshot:
        step()
        torch.cuda.synchronize()
        taken = snapshot()
    write_snapshot(taken, path)


def write_snapshot(snapshot: dict[str, Any], path: Path) -> None:
    """Write the allocator's ``snapshot`` as gzipped JSON, atomically.

    Each event keeps its innermost `FRAMES_KEPT` frames. The paths do not contain the user's folders.

    Raises:
        UserError: the file cannot be written.
    """
    thin = snapshot | {
        "device_traces": [
            [event | {"frames": event["frames"][:FRAMES_KEPT]} if "frames" in event else event for event in events]
            for events in snapshot.get("device_traces", [])
        ]
    }
    text = without_own_folders(json.dumps(thin, default=str))
    try:
        write_atomically(path, gzip.compress(text.encode(), mtime=0))
    except OSError as error:
        raise UserError(f"{path}: cannot write the memory snapshot: {error.strerror}") from error
