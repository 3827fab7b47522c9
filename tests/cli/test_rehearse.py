"""`lorabench rehearse` on the command line, as far as no null GPU is needed."""

from __future__ import annotations

import json

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
