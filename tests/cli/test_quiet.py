"""What the libraries say of themselves reaches no user who did not ask, and never standard output.

A chatterer is planted in processes of the command line: each time that torch is imported, and as models are built, it
speaks in every way that a library can.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGABRT, SIGKILL

import msgspec
import pytest

from tests.planted import Program, planted
from tests.small_models import TINY, small_config

CHATTER = """
import ctypes, logging, os, sys, warnings

def chatter(when):
    print(f"CHATTER print {when}")
    print(f"CHATTER print to stderr {when}", file=sys.stderr)
    warnings.warn(f"CHATTER warning {when}")
    logging.getLogger("chatterer").error(f"CHATTER log {when}")
    os.write(1, f"CHATTER descriptor 1 {when}\\n".encode())
    os.write(2, f"CHATTER descriptor 2 {when}\\n".encode())
    ctypes.CDLL(None).puts(f"CHATTER C {when}".encode())  # stays in a buffer, unless standard output is a terminal

def imported(torch):
    chatter("on import")
    # Writes to standard error, after all of Python has ended.
    ctypes.pythonapi.Py_AtExit(ctypes.cast(ctypes.CDLL(None).malloc_stats, ctypes.c_void_p))
    seed = torch.manual_seed
    def manual_seed(number):
        chatter("at work")
        return seed(number)
    torch.manual_seed = manual_seed
"""
WAYS = ("print", "print to stderr", "warning", "log", "descriptor 1", "descriptor 2", "C")
AT_THE_END = "Arena 0:"
RUN = ["--method", "qlora", "--seq-len", "16", "--steps", "1", "--warmup-steps", "0", "--device", "cpu"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return written(small_config("llama", **TINY), tmp_path / "llama")


@pytest.fixture
def unknown_model(tmp_path: Path) -> str:
    """One whose architecture has no closed form, so that the libraries are asked for its shapes already."""
    return written({**small_config("llama", **TINY), "model_type": "olmo3", "attention_bias": True}, tmp_path / "olmo3")


def written(config: dict[str, object], folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    return str(folder)


@pytest.fixture
def chattering(tmp_path: Path) -> Program:
    """Run a program in which the chatterer is planted."""
    return planted(tmp_path / "planted", "torch", CHATTER)


def test_the_planted_chatterer_chatters(chattering: Program) -> None:
    """So that the tests below could fail."""
    ran = chattering("-c", "import torch; torch.manual_seed(0)")
    for when in ("on import", "at work"):
        assert [way for way in WAYS if f"CHATTER {way} {when}\n" not in ran.stdout + ran.stderr] == []
    assert AT_THE_END in ran.stderr


@pytest.mark.parametrize("command", ["trace", "estimate"])
def test_a_traced_answer_is_all_that_is_printed(
    command: str,
    unknown_model: str,
    chattering: Program,
    lorabench: Callable[..., tuple[object, str, str]],
) -> None:
    arguments = [command, unknown_model, "--method", "lora", "--seq-len", "64"]
    ran = chattering("-m", "lorabench", *arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (0, ran.stdout, "") == lorabench(*arguments)


def test_who_asks_hears_the_libraries_on_standard_error(model: str, chattering: Program) -> None:
    arguments = ["-m", "lorabench", "trace", model, "--method", "qlora", "--seq-len", "64"]
    silent, speaking = chattering(*arguments), chattering(*arguments, "-v")
    assert (silent.returncode, silent.stderr) == (0, "")
    assert speaking.stdout == silent.stdout
    for when in ("on import", "at work"):
        assert [way for way in WAYS if f"CHATTER {way} {when}\n" not in speaking.stderr] == []


def test_a_run_prints_its_lines_alone(model: str, chattering: Program, tmp_path: Path) -> None:
    ran = chattering("-m", "lorabench", "run", model, *RUN, "-o", str(tmp_path / "out"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line.partition(" ")[0] for line in ran.stdout.splitlines() if not line.startswith(" ")] == ["[1/1]", "1"]
    assert "CHATTER" not in ran.stdout


def test_a_run_lets_who_asks_hear_its_workers(model: str, chattering: Program, tmp_path: Path) -> None:
    ran = chattering("-m", "lorabench", "run", model, *RUN, "-o", str(tmp_path / "out"), "--engine", "trainer", "-v")
    assert ran.returncode == 0
    assert "CHATTER" not in ran.stdout
    for when in ("on import", "at work"):
        assert [way for way in WAYS if f"CHATTER {way} {when}\n" not in ran.stderr] == []


@pytest.mark.parametrize("option", [[], ["-v"]], ids=["silent", "-v"])
def test_the_doctor_hears_its_probe_only(option: list[str], chattering: Program) -> None:
    ran = chattering("-m", "lorabench", "doctor", "--device", "cpu", "--format", "json", *option)
    assert ran.returncode == 0
    assert msgspec.json.decode(ran.stdout)["ready"]
    heard = [f"CHATTER {way} on import\n" in ran.stderr for way in WAYS]
    assert all(heard) if option else ran.stderr == ""


def test_calibrating_prints_rates_alone(chattering: Program, tmp_path: Path) -> None:
    program = (
        "from lorabench.bench.machine import calibrate\n"
        "from lorabench.cli import main\n"
        "calibrate.MATMUL_EXTENTS = {'cpu': (8, 16)}\n"
        "calibrate.MEMORY_BOUND_ELEMENTS = calibrate.DEQUANTISED_ELEMENTS = {'cpu': (2**12, 2**13)}\n"
        "calibrate.ATTENTION_SHAPES = {'cpu': (1, 1, 16, 16)}\n"
        "calibrate.LEAST_SECONDS, calibrate.HOST_STEPS = 0.0, 6\n"
        f"main(['calibrate', '--device', 'cpu', '-o', {str(tmp_path / 'calibration')!r}])\n"
    )
    ran = chattering("-c", program)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "CHATTER" not in ran.stdout
    assert ran.stdout.endswith(f"\nwrote {tmp_path / 'calibration'}\n")


def test_bad_input_is_one_line_in_spite_of_them(unknown_model: str, chattering: Program) -> None:
    ran = chattering("-m", "lorabench", "plan", unknown_model, "--gpu", "24GB")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith("lorabench: plan needs a closed form")


@pytest.mark.parametrize(
    ("end", "code"), [("ctypes.CDLL(None).exit(7)", 7), ("os.abort()", -SIGABRT), ("os.kill(os.getpid(), 9)", -SIGKILL)]
)
def test_what_libraries_said_before_they_ended_the_process_is_shown(
    end: str, code: int, model: str, tmp_path: Path
) -> None:
    dying = f"import ctypes, os\ndef imported(torch):\n    os.write(2, b'FATAL: no such disk\\n')\n    {end}\n"
    ran = planted(tmp_path / "planted", "torch", dying)("-m", "lorabench", "trace", model, "--seq-len", "64")
    assert (ran.returncode, ran.stdout) == (code, "")
    assert ran.stderr == (
        "lorabench: this process ended while libraries ran, and their last output was:\nFATAL: no such disk\n"
    )


@pytest.mark.parametrize("command", ["trace", "run", "calibrate", "doctor"])
def test_a_working_folder_that_was_deleted_is_refused(command: str, model: str, tmp_path: Path) -> None:
    """oneMKL, and so torch, cannot be loaded there."""
    arguments = {"trace": [model], "run": [model, "-o", str(tmp_path / "out")], "calibrate": [], "doctor": []}[command]
    (tmp_path / "gone").mkdir()
    program = f"import os, sys; os.rmdir(os.getcwd()); from lorabench.cli import main; main({[command, *arguments]})"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path / "gone", capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith("lorabench: the working folder was deleted")


def test_outputs_that_are_closed_stay_closed(model: str) -> None:
    closing = f"exec '{sys.executable}' -m lorabench trace '{model}' --seq-len 64 >&- 2>&-"
    assert subprocess.run(["sh", "-c", closing], check=False).returncode == 0
