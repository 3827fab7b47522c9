"""The host's memory on Linux: available bytes, and processes that the kernel's OOM killer ended."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
"""Mount point of cgroups: version 2, or all controllers of version 1."""
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Files with a container's memory limit and usage, in versions 2 and 1."""


def available_bytes() -> int | None:
    """Return the bytes available without swapping (MemAvailable), within the container's limit.

    None if the kernel does not report it.
    """
    left = [found for found in (_mem_available(), *(_left_of(*names) for names in LIMITS)) if found is not None]
    return min(left) if left else None


def kernel_kills() -> int | None:
    """Return the number of processes that the OOM killer has ended so far; None if the kernel does not report it.

    It counts this container if possible, else the whole machine.
    """
    for path in (CGROUP / "memory.events", PROC / "vmstat"):
        count = _figure(path, "oom_kill")
        if count is not None:
            return count
    return None


def _mem_available() -> int | None:
    kibibytes = _figure(PROC / "meminfo", "MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def _left_of(limit_name: str, usage_name: str) -> int | None:
    try:
        limit, usage = (int((CGROUP / name).read_text()) for name in (limit_name, usage_name))
    except (OSError, ValueError):  # no such file, or the limit is "max"
        return None
    return max(0, limit - usage)


def _figure(path: Path, name: str) -> int | None:
    """Return the number that follows ``name`` on a line of the file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(words[1]) for words in map(str.split, lines) if words and words[0] == name), None)
