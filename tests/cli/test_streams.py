"""Standard streams that are closed or full change no exit code, and reach no file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LORABENCH = (sys.executable, "-m", "lorabench")


def shell(redirection: str, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *LORABENCH, *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", [("estimate", "nowhere.json"), ("estimate", "--nonsense")])
def test_a_refusal_that_nobody_can_read_keeps_its_exit_code(redirection: str, arguments: tuple[str, ...]) -> None:
    assert shell(redirection, *arguments) == (2, "", "")


def test_an_answer_needs_no_standard_error() -> None:
    code, out, _ = shell("2>&-", "estimate", "gpt2", "--method", "lora", "--gpu", "24GB", "--no-replay")
    assert code == 0
    assert out.startswith("Fits 24GB")


def test_a_full_standard_output_is_said() -> None:
    code, out, err = shell(">/dev/full", "estimate", "gpt2", "--method", "lora", "--gpu", "24GB", "--no-replay")
    assert (code, out) == (2, "")
    assert err == "lorabench: cannot write: no space left on the device: free some, or write elsewhere\n"


def test_what_is_written_to_a_closed_stream_lands_in_no_file(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, _, _ = shell("<&- >&- 2>&-", "report", "--model", "gpt2", "-o", str(page))
    assert code == 0
    assert page.read_text().rstrip().endswith("</html>")


def test_calibrate_refuses_a_place_that_it_cannot_write_before_it_measures(
    lorabench: Callable[..., tuple[object, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        pytest.fail("it measured")

    monkeypatch.setattr("lorabench.bench.machine.calibrate.calibrate", measured)
    # Not even root can write here.
    code, out, err = lorabench("calibrate", "--device", "cpu", "-o", "/proc/self/task/calibration.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lorabench: /proc/self/task/calibration.json: cannot write (")
    assert err.endswith("): name another file with -o\n")
