"""What CUDA's allocator recorded, read as a timeline, and kept as JSON."""

from __future__ import annotations

import gzip
import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from lorabench.bench.measuring.meters.allocator_history import FRAMES_KEPT, live_bytes, write_snapshot
from lorabench.bench.measuring.meters.counted_step import TIMELINE_POINTS, thinned
from lorabench.estimator.errors import UserError

EVENTS: list[dict[str, Any]] = [  # as torch.cuda.memory._snapshot()["device_traces"][0] lists them
    {"action": "segment_alloc", "addr": 139, "size": 2097152, "stream": 0, "time_us": 1000},
    {"action": "alloc", "addr": 139, "size": 1000, "stream": 0, "time_us": 1000},
    {"action": "alloc", "addr": 139 + 1024, "size": 512, "stream": 0, "time_us": 1250},
    {"action": "free_requested", "addr": 139, "size": 1000, "stream": 0, "time_us": 2000},
    {"action": "free_completed", "addr": 139, "size": 1000, "stream": 0, "time_us": 2000},
]


def test_live_bytes_follow_allocations_and_frees_in_blocks() -> None:
    assert live_bytes(EVENTS, 4096) == ((0.0, 5120), (0.00025, 5632), (0.001, 4608))


def test_a_thinned_timeline_keeps_its_ends_and_its_peak() -> None:
    points = [(float(index), index * 7919 % 10007) for index in range(50_000)]
    kept = thinned(points)
    assert len(kept) <= TIMELINE_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert max(live for _, live in kept) == max(live for _, live in points)
    assert list(kept) == sorted(kept)
    assert thinned(points[:50]) == tuple(points[:50])


def test_a_snapshot_is_json_that_names_nobodys_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    files = [f"{sysconfig.get_path('purelib')}/torch/nn/modules/linear.py", "/home/somebody/train.py"]
    events = [{**event, "frames": [{"filename": name, "line": 1, "name": "f"} for name in files]} for event in EVENTS]
    write_snapshot({"segments": [], "device_traces": [events]}, tmp_path / "a.json.gz")
    told = json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes()))
    assert [frame["filename"] for frame in told["device_traces"][0][1]["frames"]] == [
        "torch/nn/modules/linear.py",
        "~/train.py",
    ]
    assert told["device_traces"][0][1]["size"] == 1000


def test_a_snapshot_keeps_the_frames_nearest_the_request(tmp_path: Path) -> None:
    frames = [{"filename": "a.py", "line": line, "name": "f"} for line in range(FRAMES_KEPT + 40)]
    write_snapshot({"device_traces": [[{**EVENTS[1], "frames": frames}]]}, tmp_path / "a.json.gz")
    [[event]] = json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes()))["device_traces"]
    assert [frame["line"] for frame in event["frames"]] == list(range(FRAMES_KEPT))


def test_a_snapshot_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the memory snapshot"):
        write_snapshot({}, tmp_path / "file" / "a.json")
