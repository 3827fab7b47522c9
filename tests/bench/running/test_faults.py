"""What happens to `lorabench run` itself: at most the recipe under way is lost, and --resume does the rest."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorabench.bench.records.record import read_records
from tests.bench.pretend_training import HOW
from tests.bench.running.test_workers import gone, heard

RUN = (sys.executable, "-m", "tests.bench.pretend_training", "run", "smoke", "-o")


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, bell: Path) -> Iterator[Start]:
    """Start the smoke suite of full, lora and qlora; the worker of the method ``hang`` never answers."""
    started: list[subprocess.Popen[str]] = []

    def start(*, hang: str, out: Path = tmp_path / "out") -> subprocess.Popen[str]:
        running = subprocess.Popen(
            [*RUN, str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, HOW: json.dumps({hang: "hang"})},
            preexec_fn=_heed_interrupts,
        )
        started.append(running)
        return running

    yield start
    for running in started:
        running.kill()
        running.communicate()


def _heed_interrupts() -> None:
    """Undo what a shell does to what it runs in the background: that ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def resume(out: Path, options: tuple[str, ...] = ("--resume",)) -> tuple[str, str]:
    """Finish the suite, and return the methods that were there before and the rest of what it said."""
    done = subprocess.run([*RUN, str(out), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = re.findall(r"\] demo-llama (\w+)[^\[]+\(measured earlier\)", done.stdout)
    assert len(read_records(out)) == 3
    assert not list(out.glob(".*"))
    return " ".join(there), done.stderr


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_cleanly_and_says_how_to_go_on(
    tmp_path: Path, bell: Path, start: Start, signal_: signal.Signals
) -> None:
    out = tmp_path / "my results"
    running = start(hang="lora", out=out)
    workers = heard(bell, count=2)
    running.send_signal(signal_)
    said, complaint = running.communicate(timeout=120)
    assert running.returncode == 130
    command = shlex.join(["lorabench", "run", "smoke", "-o", str(out), "--resume"])
    assert complaint == f"interrupted after 1 of 3 recipes; continue with: {command}\n"
    assert len(said.splitlines()) == 1
    assert all(gone(worker["pid"]) for worker in workers)
    assert [path.name for path in out.iterdir()] == [record.file_name for record in read_records(out)]
    assert resume(out, tuple(shlex.split(command)[5:])) == ("full", "")


def test_a_runner_that_is_killed_loses_the_recipe_under_way(tmp_path: Path, bell: Path, start: Start) -> None:
    running = start(hang="qlora")
    heard(bell, count=3)
    running.kill()
    running.communicate()
    # What a runner leaves that is killed in the middle of writing.
    (tmp_path / "out" / ".lorabench-x1y2.tmp").write_text('{"schema_ver')
    assert len(read_records(tmp_path / "out")) == 2
    assert resume(tmp_path / "out") == ("full lora", "")


def test_a_worker_that_is_killed_loses_its_recipe_only(tmp_path: Path, bell: Path, start: Start) -> None:
    running = start(hang="full")
    os.kill(heard(bell)[0]["pid"], signal.SIGKILL)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 0
    assert "error the worker ended without an answer: killed by SIGKILL" in " ".join(said.split())
    assert said.splitlines()[-1].startswith("3 recipes: 1 error, 2 ok.")
    assert resume(tmp_path / "out") == ("lora qlora", "")


def test_a_folder_takes_one_runner_at_a_time(tmp_path: Path, bell: Path, start: Start) -> None:
    running = start(hang="full")
    heard(bell)
    second = subprocess.run([*RUN, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "another lorabench run is writing there" in second.stderr
    running.kill()
    running.wait()
    resume(tmp_path / "out")


def test_a_folder_that_is_moved_meanwhile_keeps_its_records_and_gets_a_successor(
    tmp_path: Path, bell: Path, start: Start
) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"
    running = start(hang="lora")
    worker = heard(bell, count=2)[-1]
    out.rename(moved)
    os.kill(worker["pid"], signal.SIGKILL)
    _, complaint = running.communicate(timeout=120)
    assert (running.returncode, complaint) == (0, "")
    assert [record.recipe.method for record in read_records(moved)] == ["full"]
    assert sorted(record.recipe.method for record in read_records(out)) == ["lora", "qlora"]
    for record in moved.iterdir():
        record.rename(out / record.name)
    assert resume(out) == ("full qlora", "")


FULL_DISK = """
mount -t tmpfs -o size=96k tmpfs "$OUT" || exit
(until ls "$OUT"/*.record.json; do sleep 0.01; done; cat /dev/zero > "$OUT/others") > /dev/null 2>&1 &
"$@" > "$SAID/said" 2> "$SAID/complaint"
code=$?
rm "$OUT/others"
mkdir "$SAID/kept" && cp -a "$OUT/." "$SAID/kept"
exit $code
"""
"""Runs its arguments with a disk that others fill once it has a record."""


def test_a_full_disk_keeps_the_records_that_are_written(tmp_path: Path, bell: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh"]
    where = {"OUT": str(out), "SAID": str(tmp_path)}
    done = subprocess.run(
        [*shell, *RUN, str(out)], capture_output=True, text=True, check=False, env={**os.environ, **where}
    )
    if not (tmp_path / "said").exists():
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    complaint = (tmp_path / "complaint").read_text()
    assert done.returncode == 2
    assert complaint.startswith(f"lorabench: {out}/")
    assert complaint.count("\n") == 1
    assert "cannot write the record: No space left on device: free some space and continue with --resume" in complaint
    kept = tmp_path / "kept"
    there = read_records(kept)
    assert sorted(path.name for path in kept.iterdir()) == sorted(record.file_name for record in there)
    assert resume(kept) == ("full", "")
