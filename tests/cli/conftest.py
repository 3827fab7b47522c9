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


@pytest.fixture
def estimate(lorabench: Callable[..., tuple[object, str, str]]) -> Callable[..., tuple[object, str, str]]:
    """Run ``lorabench estimate``, by LoRA unless a method is named; return its exit code, output and errors."""

    def run(*arguments: str) -> tuple[object, str, str]:
        return lorabench("estimate", *arguments, *(() if "--method" in arguments else ("--method", "lora")))

    return run
