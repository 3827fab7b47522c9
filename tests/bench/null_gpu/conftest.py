"""Programs on a null GPU, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lorabench.bench.null_gpu.environment import null_gpu_environment
from lorabench.estimator.devices.device import find_device


class Told(NamedTuple):
    """What a program left."""

    values: dict[str, Any]
    """What it gave to `tell`."""
    errors: str
    notes: Path


Run = Callable[..., Told]
BEGINNING = """
import json, sys
import torch
told = {}
def tell(**values):
    told.update(values)
"""
END = """
print("TOLD", json.dumps(told))
"""


@pytest.fixture
def run_on(tmp_path: Path) -> Run:
    """Return a function that runs a program on null GPUs of a name, and returns what it told."""

    def run(gpu: str, program: str, *arguments: str, environment: dict[str, str] | None = None, **machine: Any) -> Told:
        notes = tmp_path / "notes"
        notes.mkdir(exist_ok=True)
        path = tmp_path / "program.py"
        path.write_text(BEGINNING + textwrap.dedent(program) + END)
        variables = null_gpu_environment(find_device(gpu), notes, **machine) | (environment or {})
        done = subprocess.run(
            [sys.executable, str(path), *arguments],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
        assert done.returncode == 0, done.stdout + done.stderr
        assert lines, done.stdout + done.stderr
        return Told(json.loads(lines[-1].removeprefix("TOLD ")), done.stderr, notes)

    return run
