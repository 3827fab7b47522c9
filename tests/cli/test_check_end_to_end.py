"""Real training on the CPU, held against the estimate; and faults planted in it, held against what it was before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorabench.bench.records.record import read_records
from lorabench.bench.suites.suite import load_suite
from lorabench.cli import main

ROOT = Path(__file__).parents[2]
SUITE = """\
# What the smoke suite has, adapters in half the bytes, and a sequence whose logits are what takes most.
name: smoke and more
steps: 1
warmup_steps: 1
defaults:
  model: lorabench/demo-llama
  seq_len: 128
  dtype: float32
  mixed_precision: no
matrix:
  method: [full, lora, qlora]
include:
  - {method: lora, seq_len: 32, dtype: bfloat16, adapter_dtype: bfloat16}
  - {method: lora, seq_len: 512}
"""
REFERENCES = sorted(path for path in (ROOT / "bench/reference").glob("*") if any(path.glob("*.record.json")))


def train(suite: Path, folder: Path, module: str) -> None:
    command = [sys.executable, "-m", module, "run", str(suite), "-o", str(folder), "--device", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def check(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code, and the findings by recipe and metric."""
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(folder), *arguments, "--format", "json"])
    out, err = capsys.readouterr()
    assert not err
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, {
        name_of(recipe["recipe"]): {finding["metric"]: finding for finding in recipe["findings"]}
        for recipe in json.loads(out)["recipes"]
    }


def name_of(recipe: dict[str, Any]) -> str:
    if recipe["method"] != "lora":
        return str(recipe["method"])
    return f"lora, {recipe['adapter_dtype']}, {recipe['seq_len']}"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def trained(suite: Path) -> Path:
    train(suite, suite.parent / "trained", "lorabench")
    return suite.parent / "trained"


@pytest.fixture(scope="module")
def planted(suite: Path) -> Path:
    train(suite, suite.parent / "planted", "tests.bench.planted_training")
    return suite.parent / "planted"


def test_the_smoke_suite_trained_now_takes_what_is_estimated(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {one.digest for one in load_suite("smoke").recipes} < {one.digest for one in read_records(trained)}
    code, found = check(capsys, trained, "--against-estimate", "--tolerance", "3%")
    assert code == 0
    assert set(found) == {"full", "qlora", "lora, float32, 128", "lora, bfloat16, 32", "lora, float32, 512"}
    assert all(set(metrics) == {"parameters", "peak_allocated_bytes", "phase_peaks_bytes"} for metrics in found.values())


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda path: path.name)
def test_committed_reference_measurements_are_what_is_estimated(
    reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(capsys, reference, "--against-estimate", "--tolerance", "3%")[0] == 0


def test_planted_faults_are_found_against_the_baseline(
    trained: Path, planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = ["--speed-tolerance", "off", "--loss-tolerance", "off"]
    code, found = check(capsys, planted, "--baseline", str(trained), *off)
    assert code == 1
    peaks = {recipe: metrics["peak_allocated_bytes"] for recipe, metrics in found.items()}
    assert {recipe: finding["verdict"] for recipe, finding in peaks.items()} == {
        "lora, float32, 128": "regression",  # checkpointing dropped
        "lora, bfloat16, 32": "regression",  # adapters in float32
        "lora, float32, 512": "regression",  # logits kept twice
        "full": "same",
        "qlora": "same",
    }
    rises = {recipe: finding["after"] - finding["before"] for recipe, finding in peaks.items()}
    spec = load_suite("smoke").recipes[0].spec
    assert rises["lora, float32, 512"] >= 4 * 512 * spec.vocab_size
    assert rises["full"] == rises["qlora"] == 0


def test_planted_faults_are_found_against_the_estimate(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = check(capsys, planted, "--against-estimate", "--tolerance", "0.5%")
    assert code == 1
    assert {recipe: metrics["peak_allocated_bytes"]["verdict"] for recipe, metrics in found.items()} == {
        "lora, float32, 128": "regression",
        "lora, bfloat16, 32": "regression",
        "lora, float32, 512": "regression",
        "full": "same",
        "qlora": "same",
    }
