from __future__ import annotations

import msgspec
import pytest
from click.testing import CliRunner

from lorabench.bench.machine import doctor
from lorabench.bench.machine.doctor import Check, Diagnosis
from lorabench.cli import lorabench

READY = Diagnosis(
    lorabench="0.1.0",
    python="3.12.1",
    operating_system="Ubuntu 24.04 LTS, x86_64",
    driver="580.1",
    torch_cuda="13.0",
    gpus=(),
    packages={"torch": "2.13.0"},
    checks=(
        Check(name="torch", status="ok", found="2.13.0"),
        Check(
            name="liger", status="limited", found="not installed; " + "it does without " * 6, remedy="pip install it"
        ),
    ),
    backend="cuda",
    can_train=("full", "lora"),
    ready=True,
)


def run(monkeypatch: pytest.MonkeyPatch, diagnosis: Diagnosis, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(doctor, "diagnose", lambda device: diagnosis)
    result = CliRunner().invoke(lorabench, ["doctor", *arguments], standalone_mode=False)
    assert result.exception is None
    return int(result.return_value), result.output


def test_the_table_fits_a_terminal_and_names_what_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = run(monkeypatch, READY)
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    assert "torch  ok       2.13.0\n" in output
    assert "trains on a GPU: full, lora\n" in output
    assert output.endswith("to fix:\n  liger: pip install it\n")


def test_what_is_missing_makes_the_answer_no(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = run(monkeypatch, msgspec.structs.replace(READY, ready=False, can_train=()))
    assert (code, "cannot train on a GPU yet" in output) == (1, True)


def test_json_has_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = run(monkeypatch, READY, "--format", "json")
    assert code == 0
    assert msgspec.json.decode(output, type=Diagnosis) == READY
