"""`lorabench rehearse` on the command line, as far as no null GPU is needed."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from pathlib import Path

import pytest

from lorabench.cli import main


def rehearse(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(["rehearse", *arguments])
    return stopped.value.code


def test_a_gpu_that_was_taken_for_another_is_said(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorabench.bench.rehearsing.program.null_gpu_environment", lambda device, folder, **_: {})
    said = "gpu a100-80gb means a100-sxm-80gb, not a100-pcie-80gb (as much memory, another speed)"
    nothing = 3  # for the program uses no GPU
    assert rehearse("--gpu", "a100-80gb", "--format", "json", "--", "python", "-c", "pass") == nothing
    rehearsal = json.loads(capfd.readouterr().out)
    assert (rehearsal["gpu"], rehearsal["assumptions"]) == ("a100-sxm-80gb", [said])
    assert rehearse("--gpu", "a100-80gb", "--", "python", "-c", "pass") == nothing
    out = capfd.readouterr().out
    assert f"assumed: {said}" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_a_rehearsal_that_is_terminated_leaves_nothing_and_says_so(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(
        "lorabench.bench.rehearsing.program.null_gpu_environment",
        lambda device, folder, **_: {"NULL_GPU_NOTES": str(folder)},
    )
    begun = tmp_path / "begun"
    program = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)"

    def terminate() -> None:
        while not begun.exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    assert rehearse("--gpu", "t4", "--", "python", "-c", program) == 130
    begun.unlink()
    assert list(tmp_path.iterdir()) == []
    assert "interrupted" in capfd.readouterr().err


def test_a_program_that_takes_too_long_is_ended(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lorabench.bench.rehearsing.program.null_gpu_environment",
        lambda device, folder, **_: {"NULL_GPU_NOTES": str(folder)},
    )
    assert rehearse("--gpu", "t4", "--timeout", "1", "--", "python", "-c", "import time; time.sleep(600)") == 3
    assert "the program took too long and was ended (--timeout)" in " ".join(capfd.readouterr().out.split())


def test_options_of_commands_are_refused_of_recipes(capfd: pytest.CaptureFixture[str]) -> None:
    assert rehearse("llama-3.1-8b", "--gpu", "t4", "--random-weights") == 2
    assert "--random-weights is for a command after --: recipes always have random weights" in capfd.readouterr().err
