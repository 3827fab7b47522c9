"""What tests of runners and workers share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench.pretend_training import BELL, HOW, ROOT


@pytest.fixture
def bell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pretending workers leave what they know of themselves."""
    folder = tmp_path / "bell"
    folder.mkdir()
    monkeypatch.setenv(BELL, str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv(HOW, "{}")
    return folder
