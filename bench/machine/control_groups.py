"""The control groups (cgroups) that this process is in: the limits of a container, a service or a batch job.

A limit of a group holds for all groups inside it, so this process's own group is not the only one that counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
"""Where groups of version 2 are, or a folder for each controller of version 1."""


def own_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups, of both versions, the innermost first.

    A container may see only some of them, under other names than ``/proc/self/cgroup`` gives.
    """
    for mount, group in ((MOUNT / controller, _membership(controller)), (MOUNT, _membership(""))):
        inside = mount / group
        for folder in (inside, *inside.parents):
            if folder == mount.parent:
                break
            if folder.is_dir():
                yield folder


def _membership(controller: str) -> Path:
    """Return the path of this process's group below the mount; of version 2 if ``controller`` is empty."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Path()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Seen from inside a container, a group outside begins with /.. (cgroup_namespaces(7)).
        if controller in controllers.split(",") and ".." not in Path(path).parts:
            return Path(path.lstrip("/"))
    return Path()


def memory_left() -> int | None:
    """Return the bytes that the groups leave this process; None if they set no limit."""
    left = [
        limit - used
        for folder in own_groups("memory")
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        )
        if (limit := _number(folder / limit_name)) is not None and (used := _number(folder / used_name)) is not None
    ]
    return max(0, min(left)) if left else None


def cores_allowed() -> float | None:
    """Return how many cores' time the groups give this process; None if they set no limit.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and Documentation/scheduler/sched-bwc.rst.
    """
    shares = []
    for folder in own_groups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            shares.append(int(quota) / int(period))  # ValueError if the quota is "max"
        quota_microseconds = _number(folder / "cpu.cfs_quota_us")
        period_microseconds = _number(folder / "cpu.cfs_period_us")
        if quota_microseconds and period_microseconds and quota_microseconds > 0:  # -1 is no limit
            shares.append(quota_microseconds / period_microseconds)
    return min(shares) if shares else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is no such file, or it says "max"
        return None
