"""Time that this process's threads waited for a free core, from Linux's scheduler statistics."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

TASKS = Path("/proc/self/task")
MOST_WAITING = 0.05
"""Largest share of waiting in the timed steps of a stable run: waiting may slow the steps by as much."""


def waited_seconds() -> float | None:
    """Return the total seconds that the threads of this process have waited; None if Linux does not report it.

    Source: the second field of schedstat, in nanoseconds (Linux, Documentation/scheduler/sched-stats.rst).
    """
    waits = []
    for task in TASKS.glob("*"):
        # The thread may have ended.
        with suppress(OSError):
            waits.append(int((task / "schedstat").read_text().split()[1]))
    return sum(waits) / 1e9 if waits else None


def disturbances(waited: float, seconds: float) -> list[str]:
    """Return one line if threads ``waited`` too long during ``seconds`` of timed steps, else nothing."""
    if waited <= MOST_WAITING * seconds:
        return []
    return [f"the CPU was shared: threads waited {waited:.1f} s for a core during {seconds:.1f} s of timed steps"]
