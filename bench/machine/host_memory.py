"""The host's memory on Linux: available bytes, and processes that the kernel's OOM killer ended."""

from __future__ import annotations

from pathlib import Path

from lorabench.bench.machine import control_groups

PROC = Path("/proc")


def available_bytes() -> int | None:
    """Return the bytes available without swapping (MemAvailable), within the limits of control groups.

    None if the kernel does not report it.
    """
    left = [found for found in (_mem_available(), control_groups.memory_left()) if found is not None]
    return min(left) if left else None


def kernel_kills() -> int | None:
    """Return the number of processes that the OOM killer has ended so far; None if the kernel does not report it.

    It counts this container if possible, else the whole machine.
    """
    for path in (control_groups.MOUNT / "memory.events", PROC / "vmstat"):
        count = _figure(path, "oom_kill")
        if count is not None:
            return count
    return None


def _mem_available() -> int | None:
    kibibytes = _figure(PROC / "meminfo", "MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def _figure(path: Path, name: str) -> int | None:
    """Return the number that follows ``name`` on a line of the file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(words[1]) for words in map(str.split, lines) if words and words[0] == name), None)
