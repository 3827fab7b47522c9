"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lorabench.cli import main


@pytest.fixture
def lorabench(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    """Run ``lorabench`` with the arguments given; return its exit code, output and errors."""

    def run(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([*arguments])
        return stopped.value.code, *capsys.readouterr()

    return run
