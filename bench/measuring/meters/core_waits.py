"""How long this process's threads waited for a free core, as Linux's scheduler counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

TASKS = Path("/proc/self/task")
MOST_WAITING = 0.05
"""Threads that waited for a larger share of the time that steps were timed may have made them longer by as much."""


def waited_seconds() -> float | None:
    """Return the seconds that the threads of this process have waited so far, together; None where Linux does not say.

    Source: the second field of schedstat, in nanoseconds (Linux, Documentation/scheduler/sched-stats.rst).
    """
    waits = []
    for task in TASKS.glob("*"):
        # A thread may end meanwhile.
        with suppress(OSError):
            waits.append(int((task / "schedstat").read_text().split()[1]))
    return sum(waits) / 1e9 if waits else None


def disturbances(waited: float, seconds: float) -> list[str]:
    """Return, in one line, that threads ``waited`` so long during ``seconds`` of timed steps; nothing where few did."""
    if waited <= MOST_WAITING * seconds:
        return []
    return [f"the CPU was shared: threads waited {waited:.1f} s for a core during {seconds:.1f} s of timed steps"]
