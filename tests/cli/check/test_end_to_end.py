"""Real training on the CPU, compared with the estimate; and faults planted in it, compared with what it was before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from lorabench.bench.measuring import measure as measuring
from lorabench.bench.records.record import read_records, write_record
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.suites.suite_file import load_suite
from lorabench.cli import main
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.sample_records import MODEL_CONFIG, sample_record

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore")


def check(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code, and the findings by recipe and metric."""
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(folder), *arguments, "--format", "json"])
    out, err = capsys.readouterr()
    assert not err
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, {
        recipe["label"]: {finding["metric"]: finding for finding in recipe["findings"]}
        for recipe in json.loads(out)["recipes"]
    }


ROOT = Path(__file__).parents[3]
MEASURED = [ROOT / "docs" / "examples" / "check" / "measured", *sorted((ROOT / "bench" / "reference").glob("*/"))]
"""Committed records of real training: on a CPU, and on each GPU that the reference suite ran on."""


@pytest.mark.parametrize("folder", MEASURED, ids=lambda folder: folder.name)
def test_what_was_measured_is_what_is_estimated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, folder, "--against-estimate", "--tolerance", "3%")[0] == 0


def test_the_smoke_suite_trained_now_takes_what_is_estimated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "lorabench", "run", "smoke", "-o", str(tmp_path), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*command, "--steps", "1"], capture_output=True, text=True, env=environment, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert {one.digest for one in load_suite("smoke").recipes} == {one.digest for one in read_records(tmp_path)}
    code, found = check(capsys, tmp_path, "--against-estimate", "--tolerance", "3%")
    assert code == 0
    assert [set(metrics) for metrics in found.values()] == 3 * [
        {"parameters", "peak_allocated_bytes", "phase_peaks_bytes"}
    ]


def drop_checkpointing(model: Any) -> None:
    model.get_base_model().gradient_checkpointing_disable()


def widen_adapters(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def keep_logits_twice(model: Any) -> None:
    """Keep a copy of the logits until those of the next step are there."""
    base = model.get_base_model()
    loss = base.loss_function
    kept: list[Any] = []

    def of_what_is_kept(logits: Any, *arguments: Any, **options: Any) -> Any:
        kept[:] = [logits.detach().clone()]
        return loss(logits, *arguments, **options)

    base.loss_function = of_what_is_kept


TEXT = "Measure what you mean to keep small. " * 40
"""Too short to hold any of it out, which saves most of the time."""
PLAIN: dict[str, Any] = {"dtype": "float32", "mixed_precision": "no", "seq_len": 128}
FAULTS: dict[Callable[[Any], None], dict[str, Any]] = {
    drop_checkpointing: PLAIN,
    widen_adapters: PLAIN | {"seq_len": 32, "dtype": "bfloat16", "adapter_dtype": "bfloat16"},
    keep_logits_twice: PLAIN | {"seq_len": 512},
}
"""Fault → a recipe in which nothing else hides it."""


def train(folder: Path, fault: Callable[[Any], None] | None = None, **recipe: Any) -> None:
    """Train for real, after ``fault`` has changed the model that was built, and write the record into ``folder``."""
    record = sample_record(**recipe)
    spec = read_config(record.model_config, record.recipe.model)
    build_model: Any = vars(measuring)["build_model"]

    def build_and_plant(*arguments: Any, **options: Any) -> Any:
        model = build_model(*arguments, **options)
        if fault is not None:
            fault(model)
        return model

    folder.mkdir(exist_ok=True)
    text = folder / "text.txt"
    text.write_text(TEXT)
    settings = Settings(backend="cpu", steps=1, warmup_steps=1, least_seconds=0.0, dataset=str(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "build_model", build_and_plant)
        write_record(
            folder, replace(record, measurement=measuring.measure(ResolvedRecipe(spec, record.recipe), settings))
        )


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found_against_the_baseline_and_the_estimate(
    fault: Callable[[Any], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy, planted = tmp_path / "healthy", tmp_path / "planted"
    train(healthy, **FAULTS[fault])
    train(planted, fault, **FAULTS[fault])
    assert check(capsys, healthy, "--against-estimate", "--tolerance", "0.5%")[0] == 0
    off = ["--speed-tolerance", "off", "--loss-tolerance", "off"]
    for against in (["--baseline", str(healthy), *off], ["--against-estimate", "--tolerance", "0.5%"]):
        code, found = check(capsys, planted, *against)
        assert code == 1
        [metrics] = found.values()
        assert metrics["peak_allocated_bytes"]["verdict"] == "regression"
        assert metrics["peak_allocated_bytes"]["change"] > 0


def test_a_family_without_a_closed_form_is_held_to_its_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MODEL_CONFIG | {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "num_hidden_layers": 1,
        "attention_bias": True,
    }
    train(tmp_path, model_config=config, **PLAIN)
    code, found = check(capsys, tmp_path, "--against-estimate", "--tolerance", "0.5%")
    assert code == 0
    [metrics] = found.values()
    assert set(metrics) == {"parameters", "peak_allocated_bytes", "phase_peaks_bytes"}
