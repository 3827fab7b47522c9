"""Limits of the groups that a process is in hold, also those of the groups around them, in both versions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabench.bench.machine import control_groups
from lorabench.bench.machine.control_groups import cores_allowed, memory_left, own_groups
from lorabench.bench.machine.doctor import check_cores

Groups = Callable[[str, dict[str, str]], None]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Stand in for what the kernel says of groups: membership, and files by their paths below the mount."""
    monkeypatch.setattr(control_groups, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")

    def put(membership: str, files: dict[str, str]) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return put


def test_without_groups_there_is_no_limit(groups: Groups) -> None:
    assert (memory_left(), cores_allowed(), list(own_groups("memory"))) == (None, None, [])


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        pytest.param(
            "0::/user.slice/job\n",
            {
                "user.slice/memory.max": "1000\n",
                "user.slice/memory.current": "400\n",
                "user.slice/cpu.max": "150000 100000\n",
                "user.slice/job/memory.max": "max\n",
                "user.slice/job/memory.current": "300\n",
                "user.slice/job/cpu.max": "max 100000\n",
                "other/memory.max": "1\n",
                "other/memory.current": "1\n",
            },
            id="version 2",
        ),
        pytest.param(
            "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
            {
                "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
                "memory/memory.usage_in_bytes": "5000\n",
                "memory/job/memory.limit_in_bytes": "1000\n",
                "memory/job/memory.usage_in_bytes": "400\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "cpu/job/cpu.cfs_quota_us": "75000\n",
                "cpu/job/cpu.cfs_period_us": "50000\n",
            },
            id="version 1",
        ),
        pytest.param(
            "0::/docker/0123abc\n",  # the host's name, which a container cannot see
            {"memory.max": "1000\n", "memory.current": "400\n", "cpu.max": "150000 100000\n"},
            id="container",
        ),
        pytest.param(
            "0::/../outside\n",
            {"memory.max": "1000\n", "memory.current": "400\n", "cpu.max": "150000 100000\n"},
            id="from outside",
        ),
    ],
)
def test_the_tightest_limit_holds(membership: str, files: dict[str, str], groups: Groups) -> None:
    groups(membership, files)
    assert (memory_left(), cores_allowed()) == (600, 1.5)


def test_the_doctor_says_if_threads_would_wait(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    assert (check_cores().status, check_cores().found) == ("ok", "4 of 8 may be used")
    groups("0::/\n", {"cpu.max": "250000 100000\n"})
    told = check_cores()
    assert (told.status, told.remedy) == ("limited", "export OMP_NUM_THREADS=2")
    assert "allows 2.5 cores' time, for which 4 threads wait" in told.found
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert check_cores().status == "ok"
