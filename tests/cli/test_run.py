"""`lorabench run`, with workers that pretend to train."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import pytest

from lorabench.bench.machine.environment import Surroundings
from lorabench.bench.records import atomic_writes
from lorabench.bench.records.record import DeviceFacts, read_records
from lorabench.bench.suites.suite_file import shipped_suites
from lorabench.cli import main
from lorabench.cli.progress import seconds_left
from tests.bench.pretend_training import BELL, FACTS, HOW, ROOT, pretend_here

LLAMA = "lorabench/demo-llama"
GPU = DeviceFacts(backend="cuda", name="NVIDIA Example 24GB", memory_bytes=24 * 2**30)


@pytest.fixture(autouse=True)
def bell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bell"
    folder.mkdir()
    monkeypatch.setenv(BELL, str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv(HOW, json.dumps({"qlora": "say and exit"}))
    pretend_here(monkeypatch.setattr)
    return folder


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    return stopped.value.code


def test_each_recipe_is_a_line_with_its_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("smoke", "-o", str(tmp_path / "out")) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert [line.split("]")[0] for line in lines[:3]] == ["[1/3", "[2/3", "[3/3"]
    assert "demo-llama full 1×128 ckpt" in lines[0]
    assert re.search(r"  ok +\d+\.\d MiB +627 tok/s loss 6.93→5.09$", lines[0])
    assert lines[2].endswith("  oom the worker ended without an answer:")
    assert lines[3] == "    exit code 3: CUDA error: out of memory"
    assert lines[4] == f"3 recipes: 2 ok, 1 oom. Records are in {tmp_path / 'out'}"
    assert max(map(len, lines[:4])) <= 80
    assert len(read_records(tmp_path / "out")) == 3


def test_quiet_prints_the_last_line_only_and_verbose_every_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("smoke", "-o", str(tmp_path), "-q") == 0
    assert capsys.readouterr().out == f"3 recipes: 2 ok, 1 oom. Records are in {tmp_path}\n"
    assert run("smoke", "-o", str(tmp_path), "-v") == 0
    said = capsys.readouterr().out
    assert said.startswith("on Example CPU @ 2.50GHz\n")
    assert "attn_implementation=sdpa" in said
    assert "seed 0, 1 warm-up and 5 timed steps" in said
    assert "    first\n    CUDA error: out of memory\n" in said
    assert max(len(line) for line in said.splitlines() if line.startswith("    ")) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_counts_every_record_that_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """The interrupt arrives just after a record got its name, before the run has taken note of it."""
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(atomic_writes, "_sync_folder", lambda folder: signal.raise_signal(number))
    assert run("smoke", "-o", str(tmp_path / "out")) == 130
    assert len(read_records(tmp_path / "out")) == 1
    assert capsys.readouterr().err.startswith("interrupted after 1 of 3 recipes; continue with: ")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


LONG = """
description: Three recipes whose labels take more columns than a terminal has left, and this line, which does too.
defaults: {seq_len: 128}
include:
  - {model: lorabench/demo-llama, optim: adamw_bnb_8bit, mixed_precision: no, target_modules: attention}
  - {model: lorabench/demo-llama, optim: lion_8bit, mixed_precision: bf16, method: qlora}
  - {model: lorabench/demo-llama, optim: paged_adamw_8bit, mixed_precision: no, target_modules: "q_proj,v_proj"}
"""


def test_a_line_that_is_too_long_goes_on_below_without_parting_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.yaml").write_text(LONG)
    assert run(str(tmp_path / "long.yaml"), "-o", str(tmp_path / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert [line[:5] for line in lines[:-1]] == ["[1/3]", "    o", "[2/3]", "    e", "[3/3]", "    o"]
    assert re.fullmatch(r"    optim=adamw_bnb_8bit  ok +\d+\.\d MiB +627 tok/s loss 6.93→5.09", lines[1])
    assert run(str(tmp_path / "long.yaml"), "--dry-run", "--gpu", "h100-sxm") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "    optim=paged_adamw_8bit" in lines


def test_what_was_chosen_instead_of_a_default_is_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "assumed: seq_len 1024 instead of 2048: lorabench/demo-gpt2 has learned positions"
    suite = tmp_path / "suite.yaml"
    suite.write_text("matrix: {model: [lorabench/demo-gpt2], rank: [4, 8]}")
    for target in ("demo-gpt2", str(suite)):
        assert run(target, "-o", str(tmp_path / Path(target).stem)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [said, "    for 1024 tokens"]
        assert "1×1024" in lines[2]
        assert said not in lines[2:]
    (record,) = read_records(tmp_path / "demo-gpt2")
    assert record.recipe.seq_len == 1024
    assert run("demo-gpt2", "-o", str(tmp_path / "demo-gpt2"), "-q") == 0
    assert "assumed" not in capsys.readouterr().out


def test_recipe_and_run_options_reach_the_worker(tmp_path: Path, bell: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    recipe = ["--method", "lora", "-r", "8", "--seq-len", "64"]
    how = ["--steps", "7", "--warmup-steps", "0", "--seed", "5", "--repeats", "2", "--engine", "trainer"]
    assert run("demo-llama", *recipe, *how, "--dataset", str(tmp_path / "text.txt"), "-o", str(tmp_path / "out")) == 0
    first, second = sorted(read_records(tmp_path / "out"), key=lambda record: record.repeat)
    assert (first.recipe.model, first.recipe.rank, first.recipe.seq_len) == (LLAMA, 8, 64)
    assert (first.steps, first.warmup_steps, first.seed, first.dataset) == (7, 0, 5, "text.txt")
    assert (second.repeat, second.seed, second.engine) == (1, 6, "trainer")
    assert sorted(json.loads(worker.read_text())["seed"] for worker in bell.glob("*.worker")) == [5, 6]


def test_resuming_says_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("smoke", "-o", str(tmp_path)) == 0
    assert capsys.readouterr().out.count("before)") == 0
    assert run("smoke", "-o", str(tmp_path), "--resume") == 0
    said = capsys.readouterr().out
    assert (said.count("(measured earlier)"), said.count("(from an earlier run)")) == (2, 1)


def test_nothing_measured_is_exit_3(tmp_path: Path) -> None:
    assert run(LLAMA, "--method", "qlora", "-o", str(tmp_path)) == 3


def test_where_every_recipe_is_required_one_that_fails_is_exit_1_with_its_reason_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOW, '{"lora": "raise"}')
    arguments = ["smoke", "-o", str(tmp_path / "out"), "--require-all"]
    assert run(*arguments, "-q") == 1
    assert capsys.readouterr().err.splitlines() == [
        "not measured:",
        "  demo-llama lora r16 1×128 ckpt: error broke",
        f"to retry with all tracebacks: lorabench run {' '.join(arguments)} -v --resume",
        "to check this machine: lorabench doctor",
    ]
    assert run("smoke", "-o", str(tmp_path / "not required")) == 0
    monkeypatch.setenv(HOW, "{}")
    assert run(*arguments, "--resume") == 0
    assert capsys.readouterr().err == ""


def test_what_has_run_out_of_memory_is_not_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("smoke", "-o", str(tmp_path), "--require-all") == 1
    assert "to try again" not in capsys.readouterr().err
    assert run(LLAMA, "--method", "qlora", "-o", str(tmp_path / "alone"), "--require-all") == 3


def test_a_recipe_that_takes_too_long_is_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOW, '{"lora": "hang"}')
    assert run("smoke", "-o", str(tmp_path), "--timeout", "2") == 0
    assert "timeout took over 2 s (--timeout)" in capsys.readouterr().out


def test_what_the_time_limit_leaves_is_exit_1_and_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOW, '{"full": "hang"}')
    arguments = ["smoke", "-o", str(tmp_path / "out"), "--time-limit", "0.01"]
    assert run(*arguments) == 1
    assert capsys.readouterr() == (
        "",
        f"no time for 3 more; continue with: lorabench run {' '.join(arguments)} --resume\n",
    )
    monkeypatch.setenv(HOW, "{}")
    assert run(*arguments[:3], "--resume") == 0
    assert "3 recipes: 3 ok" in capsys.readouterr().out


def test_what_is_predicted_not_to_fit_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_here(monkeypatch.setattr, Surroundings(device=GPU, environment=FACTS.environment))
    assert run("llama-3.1-8b", "--method", "full", "-o", str(tmp_path), "--skip-unfit") == 3
    assert "skipped predicted not to fit: " in capsys.readouterr().out
    assert run("llama-3.1-8b", "--method", "full", "-o", str(tmp_path), "--resume") == 0


def test_a_broken_record_is_said_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.record.json").write_text("{")
    assert run("smoke", "-o", str(tmp_path), "-q") == 0
    assert capsys.readouterr().err == (
        f"lorabench: {tmp_path}/x.record.json: broken record, renamed to x.record.json.broken\n"
    )


# Looking before.


def test_a_dry_run_lists_recipes_with_memory_time_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "description: Two sizes.\nrepeats: 3\nsteps: 10\nwarmup_steps: 2\n"
        "matrix: {model: [qwen2.5-0.5b, llama-3.1-8b], method: [full, qlora]}"
    )
    assert run(str(suite), "--dry-run", "--gpu", "rtx-4090") == 0
    said, err = capsys.readouterr()
    lines = said.splitlines()
    assert err == ""
    assert lines[0] == "Two sizes."
    assert lines[2].split() == ["recipe", "allocated", "device", "total", "training", "verdict"]
    assert [line.split()[0:2] for line in lines[3:7]] == [
        [model, method] for model in ("Qwen2.5-0.5B", "Llama-3.1-8B") for method in ("full", "qlora")
    ]
    assert [line.endswith("does not fit") for line in lines[3:7]] == [False, False, True, False]
    # 16 bytes for each of 8.03e9 parameters are 119.7 GiB.
    assert float(lines[5].split()[-7]) > 119.7
    assert lines[8] == "4 recipes, 3 times each, 2 warm-up and 10 timed steps"
    assert lines[9] == "on rtx-4090 (23.99 GiB): fits: 3, does not fit: 1"
    assert re.fullmatch(r"training takes about [\d.]+ (s|min) in all, plus loading", lines[10])
    assert max(map(len, lines)) <= 80
    assert run(str(suite), "--dry-run", "--gpu", "24GB") == 0
    assert "training time unknown: run lorabench calibrate" in capsys.readouterr().out


def test_a_dry_run_without_a_gpu_is_of_this_machine_and_says_what_has_no_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lorabench.bench.machine.environment.local_device", lambda choice: FACTS.device)
    assert run("smoke", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["recipe", "allocated"]
    assert "device total" not in lines[2]
    assert "on Example CPU @ 2.50GHz (8.00 GiB): fits: 3" in lines


def test_what_the_device_has_no_kernels_for_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lorabench.bench.machine.environment.local_device", lambda choice: FACTS.device)
    reason = "loss liger runs on CUDA only, and this is cpu: use loss standard"
    suite = tmp_path / "losses.yaml"
    suite.write_text("matrix: {model: [lorabench/demo-llama], loss: [standard, liger]}")
    assert run(str(suite), "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("fits")
    assert lines[2].endswith("cannot run")
    assert lines[-1] == f"cannot run: {reason}"
    assert run(str(suite), "--dry-run", "--gpu", "24GB") == 0
    assert "cannot run" not in capsys.readouterr().out
    assert run(str(suite), "-o", str(tmp_path / "out"), "-q") == 0
    label = "demo-llama lora r16 1×2048 ckpt loss=liger"
    assert capsys.readouterr().err == f"lorabench: cannot run here: {label}: {reason}\n"


def test_a_dry_run_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from lorabench.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "methods", "--dry-run", "--gpu", "80GB"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "14 recipes" in done.stdout


def test_the_help_fits_a_terminal_and_names_every_shipped_suite() -> None:
    from lorabench.cli.run import command

    said = click.testing.CliRunner().invoke(command, ["--help"]).output
    assert max(map(len, said.splitlines())) <= 80
    assert f"shipped suite: {', '.join(sorted(shipped_suites()))}." in " ".join(said.split())


# On a terminal.


def test_on_a_terminal_it_draws_what_runs_and_leaves_the_lines(tmp_path: Path, bell: Path) -> None:
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.pretend_training", "run", "smoke", "-o", str(tmp_path / "out")],
        stdout=theirs,
        stderr=subprocess.STDOUT,
        env={**os.environ, HOW: '{"full": "wait for the word"}', "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            read = os.read(ours, 2**16)
        except OSError:  # Linux's way to say that nobody writes any more
            break
        if not read:
            break
        drawn += read
        if re.search(r"  [1-9]\d* s  demo-llama full 1×128 ckpt".encode(), drawn):
            (bell / "go").touch()
    assert running.wait(120) == 0
    text = drawn.decode()
    assert 0 < text.index("starting") < text.index("0 of 3 done")
    assert re.search(r"1 of 3 done, about \d+ s left", text)
    kept = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "[3/3] demo-llama qlora r16 1×128 ckpt  ok" in kept
    assert "3 recipes: 3 ok." in kept


@pytest.mark.parametrize(
    ("measured", "left", "lanes", "expected"), [([], 3, 1, None), ([2.0, 4.0], 5, 1, 15.0), ([2.0, 4.0], 5, 2, 7.5)]
)
def test_the_rest_takes_what_those_before_took(
    measured: list[float], left: int, lanes: int, expected: float | None
) -> None:
    assert seconds_left(measured, left, lanes) == expected


# Wrong use.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smoke"], "Missing option '-o'"),
        (["-o", "out"], "name a SUITE or MODEL, or the config of another tool"),
        (["smok", "-o", "out"], "no suite 'smok': did you mean smoke?"),
        (["zzz", "-o", "out"], "no suite 'zzz': choose from demo, first, memory, methods, optimizers, ranks"),
        (["sweep.yaml", "-o", "out"], "sweep.yaml: no such suite"),
        (["smoke", "-r", "8", "-o", "out"], "--rank needs a single MODEL: write rank into the suite smoke"),
        (["smoke", "-q", "-v", "-o", "out"], "--quiet and --verbose contradict each other"),
        (["smoke", "--gpu", "a100", "-o", "out"], "--gpu needs --dry-run"),
        (["smoke", "--dry-run", "--gpu", "rtx-4091"], "did you mean rtx-4090?"),
        (["smoke", "--dry-run", "--gpu", "rtx-4090", "--device", "cpu"], "--gpu and --device contradict each other"),
        (["smoke", "--dry-run", "--weights", "missing"], "weights missing: not a folder with *.safetensors"),
        (["smoke", "--dry-run", "--dataset", "missing.txt"], "missing.txt: cannot read the dataset"),
        ([LLAMA, "--loss", "liger", "-o", "out"], "loss liger runs on CUDA only, and this is cpu: use loss standard"),
        (["smoke", "-o", "out", "--memory-snapshot"], "--memory-snapshot needs CUDA's allocator"),
        *(
            (["smoke", "--dry-run", *option], f"{option[0]} does not apply to --dry-run, which trains nothing")
            for option in (
                ["--output", "out"], ["--resume"], ["--skip-unfit"], ["--timeout", "3600"], ["--time-limit", "1"],
                ["--engine", "trainer"], ["--seed", "0"], ["--timeline"], ["--memory-snapshot"], ["--quiet"],
                ["--verbose"],
            )
        ),
        ([__file__, "--dry-run"], "others are files named *.yaml or *.yml"),
        ([LLAMA, "--method", "full", "-r", "8", "-o", "out"], "rank does not apply to method full"),
        ([LLAMA, "--method", "qlroa", "-o", "out"], "did you mean qlora?"),
        ([LLAMA, "--target-modules", "q_prj", "-o", "out"], "did you mean q_proj?"),
        ([LLAMA, "--device", "gpu", "-o", "out"], "'gpu'"),
        ([LLAMA, "--steps", "0", "-o", "out"], "--steps must be a whole number from 1 to 100000, got 0"),
        ([LLAMA, "--warmup-steps", "-1", "-o", "out"], "--warmup-steps must be a whole number from 0 to 100000"),
        (["smoke", "--dry-run", "--repeats", "9999"], "--repeats must be a whole number from 1 to 1000, got 9999"),
        ([LLAMA, "-r", "-1", "-o", "out"], "rank must be a whole number from 1 to 2147483647, got -1"),
        ([LLAMA, "--timeout", "0", "-o", "out"], "--timeout"),
        *(
            ([LLAMA, "--time-limit", minutes, "-o", "out"], "--time-limit must be above 0 and at most 1000000 minutes")
            for minutes in ("0", "-1", "inf", "nan")
        ),
        ([LLAMA, "--seed", "-1", "-o", "out"], "--seed"),
        ([LLAMA, "--dataset", "missing.txt", "-o", "out"], "missing.txt: cannot read the dataset"),
        ([LLAMA, "--weights", "missing", "-o", "out"], "weights missing: not a folder with *.safetensors"),
        (["lorabench/demo-gpt2", "--seq-len", "2000", "-o", "out"], "learned positions for 1024 tokens"),
        ([LLAMA, "-o", "file"], "file: is a file"),
        ([LLAMA, "-o", "file/out"], "file/out: cannot write there"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line_and_exit_2_before_anything_is_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bell: Path,
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
    assert list(bell.iterdir()) == []


def test_without_the_bench_extra_it_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in ("torch", "peft") else there(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert run("demo", "-o", str(tmp_path)) == 2
    assert capsys.readouterr().err == "lorabench: training needs torch, peft: pip install 'lorabench[bench]'\n"


def test_records_are_not_mixed_with_those_of_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(LLAMA, "-o", str(tmp_path)) == 0
    pretend_here(monkeypatch.setattr, Surroundings(device=GPU, environment=FACTS.environment))
    capsys.readouterr()
    assert run(LLAMA, "-o", str(tmp_path), "--resume") == 2
    assert "name another folder with -o" in capsys.readouterr().err
