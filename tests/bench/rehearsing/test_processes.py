"""A program and all that it starts end with the rehearsal. Any program will do: none here needs a GPU."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorabench.bench.rehearsing.processes import run_program

WITH_A_STUBBORN_CHILD = """
import os, signal, subprocess, sys, tempfile, time
from pathlib import Path
stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
stubborn += "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
with tempfile.TemporaryDirectory(dir=sys.argv[1]) as scratch:
    Path(sys.argv[1], "child").write_text(str(child.pid))
    time.sleep(float(sys.argv[2]))
"""


def run(folder: Path, seconds: float, *, timeout_seconds: float) -> int | None:
    notes = folder / "notes"
    notes.mkdir()
    program = folder / "program.py"
    program.write_text(textwrap.dedent(WITH_A_STUBBORN_CHILD))
    variables = os.environ | {"NULL_GPU_NOTES": str(notes)}
    command = [sys.executable, str(program), str(folder), str(seconds)]
    return run_program(command, variables, notes, timeout_seconds=timeout_seconds)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.fixture(params=[False, True], ids=["in the foreground", "in the background"])
def background(request: pytest.FixtureRequest) -> Iterator[None]:
    """A job that a shell script starts in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if request.param else signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("background")
@pytest.mark.parametrize(("seconds", "timeout_seconds", "exit_code"), [(600, 4, None), (0, 60, 0)])
def test_nothing_is_left_of_a_program_that_takes_too_long_or_leaves_a_child_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, timeout_seconds: float, exit_code: int | None
) -> None:
    monkeypatch.setattr("lorabench.bench.rehearsing.processes.SIGNALS", ((2, 8.0), (15, 0.5), (9, 5.0)))
    began = time.monotonic()
    assert run(tmp_path, seconds, timeout_seconds=timeout_seconds) == exit_code
    assert time.monotonic() - began < 60
    assert not is_alive(int((tmp_path / "child").read_text()))
    # The program was interrupted before it was killed, and so could remove its own folder.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "notes", "program.py"]
