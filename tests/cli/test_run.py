from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lorabench.bench import runner
from lorabench.bench.environment import Surroundings
from lorabench.bench.jobs import Answer, Settings
from lorabench.bench.records import read_records
from lorabench.bench.suites import Planned
from lorabench.cli import main
from tests.sample_records import sample_record

FACTS = sample_record()
LLAMA = "lorabench/demo-llama"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Planned, Settings, float]]:
    """Stands in for training; holds what the workers were asked."""
    given: list[tuple[Planned, Settings, float]] = []

    def answer(planned: Planned, settings: Settings, timeout_seconds: float) -> Answer:
        given.append((planned, settings, timeout_seconds))
        if planned.recipe.method == "qlora":
            return Answer(outcome="oom", message="CUDA out of memory.")
        return Answer(outcome="ok", measurement=FACTS.measurement)

    surroundings = Surroundings(device=FACTS.device, environment=FACTS.environment)
    monkeypatch.setattr(runner, "ask_worker", answer)
    monkeypatch.setattr(runner, "probe_surroundings", lambda device: surroundings)
    return given


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    return stopped.value.code


Asked = list[tuple[Planned, Settings, float]]


def test_each_recipe_is_a_line_with_its_outcome(
    tmp_path: Path, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("smoke", "-o", str(tmp_path / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in lines[:3]] == ["[1/3", "[2/3", "[3/3"]
    assert "demo-llama full 1×128 ckpt" in lines[0]
    assert "tok/s  loss 6.930 → 5.090" in lines[0]
    assert "MiB" in lines[0]
    assert lines[2].endswith("oom      CUDA out of memory.")
    assert lines[3] == f"3 recipes: 2 ok, 1 oom. Records are in {tmp_path / 'out'}"
    assert len(read_records(tmp_path / "out")) == 3


def test_recipe_and_run_options_reach_the_worker(tmp_path: Path, asked: Asked) -> None:
    (tmp_path / "text.txt").write_text("words")
    recipe = ["--method", "lora", "-r", "8", "--seq-len", "64"]
    how = ["--steps", "7", "--warmup-steps", "0", "--timeout", "9", "--seed", "5"]
    assert run("demo-llama", *recipe, *how, "--dataset", str(tmp_path / "text.txt"), "-o", str(tmp_path / "out")) == 0
    [(planned, settings, timeout)] = asked
    assert (planned.recipe.model, planned.recipe.rank, planned.recipe.seq_len) == (LLAMA, 8, 64)
    assert settings == Settings(device="cpu", steps=7, warmup_steps=0, seed=5, dataset=str(tmp_path / "text.txt"))
    assert timeout == 9


def test_resuming_says_what_was_there(tmp_path: Path, asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run("smoke", "-o", str(tmp_path), "--resume") == 0
    assert [planned.recipe.method for planned, _, _ in asked] == ["full", "lora", "qlora", "qlora"]
    assert capsys.readouterr().out.count("(measured before)") == 2


def test_nothing_measured_is_exit_3(tmp_path: Path, asked: Asked) -> None:
    assert run(LLAMA, "--method", "qlora", "-o", str(tmp_path)) == 3


def test_a_loss_that_is_not_finite_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = FACTS.measurement
    assert measured is not None
    lost = msgspec.structs.replace(measured, losses=(5.0, None))
    note = "the loss was not finite in 1 of 2 steps"
    monkeypatch.setattr(runner, "ask_worker", lambda *job: Answer(outcome="ok", message=note, measurement=lost))
    assert run(LLAMA, "-o", str(tmp_path)) == 0
    assert f"loss 5.000 → not finite  ({note})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smoke"], "Missing option '-o'"),
        (["-o", "out"], "Missing argument 'SUITE|MODEL'"),
        (["smok", "-o", "out"], "shipped suites are demo, smoke"),
        (["sweep.yaml", "-o", "out"], "sweep.yaml: no such suite"),
        (["smoke", "-r", "8", "-o", "out"], "--rank is for a single MODEL: write rank into the suite smoke"),
        ([LLAMA, "--method", "full", "-r", "8", "-o", "out"], "rank has no meaning for method full"),
        ([LLAMA, "--method", "qlroa", "-o", "out"], "did you mean qlora?"),
        ([LLAMA, "--target-modules", "q_prj", "-o", "out"], "did you mean q_proj?"),
        ([LLAMA, "--device", "gpu", "-o", "out"], "'gpu'"),
        ([LLAMA, "--steps", "0", "-o", "out"], "--steps"),
        ([LLAMA, "--timeout", "0", "-o", "out"], "--timeout"),
        ([LLAMA, "--seed", "-1", "-o", "out"], "--seed"),
        ([LLAMA, "--dataset", "missing.txt", "-o", "out"], "missing.txt: cannot read the dataset"),
        ([LLAMA, "--weights", "missing", "-o", "out"], "weights missing: no folder with *.safetensors"),
        (["lorabench/demo-gpt2", "--seq-len", "2000", "-o", "out"], "learned positions for 1024 tokens"),
        ([LLAMA, "-o", "file"], "file: is a file"),
        ([LLAMA, "-o", "file/out"], "file/out: cannot write there"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line_and_exit_2_before_anything_is_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: Asked,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert asked == []


def test_without_the_bench_extra_it_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in ("torch", "peft") else there(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert run("demo", "-o", str(tmp_path)) == 2
    assert capsys.readouterr().err == "lorabench: training needs torch, peft: pip install 'lorabench[bench]'\n"


def test_an_interrupt_ends_the_worker_and_says_how_to_go_on(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "lorabench", "run", "smoke", "--device", "cpu", "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.read(5) == "[1/3]"
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not (workers := children.read_text().split()):
        assert running.poll() is None
    exits = select.poll()
    for worker in workers:
        exits.register(os.pidfd_open(int(worker)), select.POLLIN)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted after 0 of 3 recipes" in err
    assert "--resume" in err
    assert "Traceback" not in err + out
    assert len(exits.poll(60_000)) == len(workers)
    assert list((tmp_path / "out").iterdir()) == []
