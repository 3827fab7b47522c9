"""Baselines made of results."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from lorabench.bench.check import new_baseline
from lorabench.bench.records.record import read_records
from tests.bench.check.records import folder, record, repeats

MIB = 2**20


def peaks_in(path: str) -> dict[str, int]:
    return {
        one.recipe.label(): one.measurement.memory.peak_allocated_bytes
        for one in read_records(Path(path))
        if one.measurement is not None
    }


def test_a_first_baseline_is_made_of_the_results(tmp_path: Path, worse: str, check: Any) -> None:
    new = tmp_path / "deep" / "baseline"
    code, _, err = check(worse, "--baseline", str(new), "--update-baseline")
    assert (code, err) == (0, f"{new} now holds these results as the baseline\n")
    assert read_records(new) == read_records(Path(worse))
    assert stat.S_IMODE(new.stat().st_mode) & 0o077 == 0o077 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_what_got_worse_becomes_the_baseline_only_where_it_is_allowed(
    tmp_path: Path, baseline: str, check: Any
) -> None:
    results = folder(tmp_path / "after", record(rank=8, peak_allocated_bytes=48 * MIB), record(rank=4))
    before = {path.name: path.read_bytes() for path in Path(baseline).iterdir()}
    code, _, err = check(results, "--baseline", baseline, "--update-baseline")
    assert code == 1
    assert "is unchanged" in err
    assert {path.name: path.read_bytes() for path in Path(baseline).iterdir()} == before
    (Path(baseline) / "README").write_text("ours")
    code, _, _ = check(
        results, "--baseline", baseline, "--update-baseline", "--allow", "peak_allocated_bytes=new kernels"
    )
    assert code == 0
    assert peaks_in(baseline) == {
        "llama-2m full 1×256 ckpt": 64 * MIB,  # in the old baseline only: kept
        "llama-2m lora r8 1×256 ckpt": 48 * MIB,
        "llama-2m lora r4 1×256 ckpt": peaks_in(results)["llama-2m lora r4 1×256 ckpt"],
    }
    assert (Path(baseline) / "README").read_text() == "ours"
    assert "regression, allowed: new kernels" in (Path(baseline) / "review.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_fewer_repeats_leave_none_of_the_old_ones_behind(tmp_path: Path, check: Any) -> None:
    old, new = folder(tmp_path / "old", *repeats(3)), folder(tmp_path / "new", *repeats(2))
    assert check(new, "--baseline", old, "--update-baseline")[0] == 0
    assert [one.repeat for one in read_records(Path(old))] == [0, 1]


def test_what_is_open_does_not_become_the_baseline(tmp_path: Path, baseline: str, check: Any) -> None:
    results = folder(tmp_path / "x", record(rank=8, peak_allocated_bytes=32 * MIB, unstable=("GPU shared",)))
    assert check(results, "--baseline", baseline, "--update-baseline")[0] == 3
    assert all(not one.measurement.unstable for one in read_records(Path(baseline)) if one.measurement)


def test_a_baseline_that_cannot_be_written_stays_whole(
    tmp_path: Path, baseline: str, monkeypatch: pytest.MonkeyPatch, check: Any
) -> None:
    written: list[Path] = []

    def full_disk(path: Path, content: bytes) -> None:
        if written:
            raise OSError(28, "No space left on device")
        path.write_bytes(content)
        written.append(path)

    monkeypatch.setattr(new_baseline, "write_atomically", full_disk)
    results = folder(tmp_path / "after", record(rank=8, peak_allocated_bytes=31 * MIB), record(rank=4))
    before = {path.name: path.read_bytes() for path in Path(baseline).iterdir()}
    code, _, err = check(results, "--baseline", baseline, "--update-baseline")
    assert (code, err) == (
        2,
        f"lorabench: {baseline}: cannot write the baseline: No space left on device: name another folder\n",
    )
    assert written
    assert {path.name: path.read_bytes() for path in Path(baseline).iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "before"]


def peaks_now_in(path: Path) -> list[int] | None:
    """Return what the folder of that name holds; None where another took the name while it was read."""
    handle = os.open(path, os.O_RDONLY)
    try:
        names = [name for name in os.listdir(handle) if name.endswith(".record.json")]  # noqa: PTH208
        texts = [_read(name, handle) for name in names]
        if os.fstat(handle).st_ino != path.stat().st_ino:
            return None
    finally:
        os.close(handle)
    return [json.loads(text)["measurement"]["memory"]["peak_allocated_bytes"] // MIB for text in texts if text]


def _read(name: str, folder: int) -> bytes:
    try:
        handle = os.open(name, os.O_RDONLY, dir_fd=folder)
    except FileNotFoundError:
        return b""
    with os.fdopen(handle, "rb") as file:
        return file.read()


def test_a_reader_sees_the_old_baseline_or_the_new_never_a_mixture(tmp_path: Path, check: Any) -> None:
    sides = [
        folder(tmp_path / str(peak), *(record(rank=rank, peak_allocated_bytes=peak * MIB) for rank in (4, 8, 16)))
        for peak in (30, 20)
    ]
    live = tmp_path / "live"
    folder(live, *read_records(Path(sides[0])))
    options = ["--update-baseline", "--speed-tolerance", "off", "--allow", "peak_allocated_bytes=swap"]
    seen: set[tuple[int, ...] | str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                peaks = peaks_now_in(live)
            except FileNotFoundError:
                seen.add("no such folder")
            else:
                if peaks is not None:
                    seen.add(tuple(peaks))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for turn in range(20):
            check(sides[(turn + 1) % 2], "--baseline", str(live), *options)
    finally:
        done.set()
        watcher.join()
    assert seen == {(30, 30, 30), (20, 20, 20)}
