"""What tests of `lorabench check` share: records made up for it, in folders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bench.check.records import folder, record, repeats, times
from tests.sample_records import LOSSES

MIB = 2**20


@pytest.fixture
def check(lorabench: Callable[..., tuple[object, str, str]]) -> Any:
    """Run ``lorabench check`` with the arguments given; return its exit code, output and errors."""
    return partial(lorabench, "check")


@pytest.fixture
def baseline(tmp_path: Path) -> str:
    return folder(
        tmp_path / "before",
        *repeats(2, rank=8, peak_allocated_bytes=32 * MIB),
        *repeats(2, method="full", peak_allocated_bytes=64 * MIB),
    )


@pytest.fixture
def worse(tmp_path: Path) -> str:
    return folder(
        tmp_path / "after",
        record(rank=8, peak_allocated_bytes=48 * MIB),
        record(method="full", outcome="oom", message="out of memory | 2 GiB\nwanted, 100% of it"),
        record(method="qlora"),
    )


@pytest.fixture
def all_worse(tmp_path: Path) -> str:
    """Worse in every metric, and of a recipe with one run a side worse in the loss."""
    losses = [1.06 * (loss or 0) for loss in LOSSES]
    return folder(
        tmp_path / "more",
        *repeats(2, rank=8, peak_allocated_bytes=33 * MIB, step_seconds=times(1.1), losses=losses, nvml=500 * MIB),
        record(rank=4, losses=losses),
    )
