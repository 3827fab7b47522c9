from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorabench.bench.measuring.meters import core_waits
from lorabench.bench.measuring.meters.cpu import CpuMeter

SPIN = "import time\nprint(flush=True)\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to a core")
def test_steps_that_share_their_core_are_called_unstable() -> None:
    """Two processes on one core get half of it each: a second of work takes two, one of them waited for."""
    ours = os.sched_getaffinity(0)
    one = {min(ours)}
    other = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()  # it spins
        os.sched_setaffinity(0, one)
        os.sched_setaffinity(other.pid, one)
        meter = CpuMeter()
        with meter.steady():
            end = time.monotonic() + 0.6
            while time.monotonic() < end:
                pass
    finally:
        os.sched_setaffinity(0, ours)
        other.kill()
        other.communicate()
    [told] = meter.readings.disturbances
    assert told.startswith("the CPU was shared: threads waited 0.")


def test_all_threads_waits_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for thread, nanoseconds in (("7", 250_000_000), ("8", 1_500_000_000)):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(f"9000000000 {nanoseconds} 12\n")
    (tmp_path / "9").mkdir()  # has ended
    monkeypatch.setattr(core_waits, "TASKS", tmp_path)
    assert core_waits.waited_seconds() == 1.75


def test_a_system_that_does_not_tell_is_no_disturbance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_waits, "TASKS", tmp_path / "nowhere")
    assert core_waits.waited_seconds() is None
    meter = CpuMeter()
    with meter.steady():
        pass
    assert meter.readings.disturbances == ()


@pytest.mark.parametrize(("waited", "told"), [(0.04, 0), (0.06, 1)])
def test_waits_of_a_twentieth_of_the_time_are_told(waited: float, told: int) -> None:
    assert len(core_waits.disturbances(waited, 1.0)) == told
