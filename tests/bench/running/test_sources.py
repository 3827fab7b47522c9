"""Weights of the hub where the hub cannot be reached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from lorabench.bench.records.record import read_records
from tests.saved_models import save_with_tokenizer
from tests.small_models import TINY, small_config

DEAD_PROXY = "http://127.0.0.1:9"
"""The port of the discard service, which nobody runs any more: connections are refused at once."""
OPTIONS = ("--weights", "hub", "--seq-len", "16", "--steps", "1", "--warmup-steps", "0", "--device", "cpu")


def run(model: str, out: Path, hub_home: Path) -> subprocess.CompletedProcess[str]:
    """Run a model of the hub behind a dead proxy; transformers alone would try again for more than a minute."""
    environment = {**os.environ, "HF_HOME": str(hub_home), "HTTPS_PROXY": DEAD_PROXY, "HTTP_PROXY": DEAD_PROXY}
    command = [sys.executable, "-m", "lorabench", "run", model, "-o", str(out), *OPTIONS]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("smollm2-135m", "there are none of HuggingFaceTB/SmolLM2-135M, since the hub cannot be reached"),
        ("lorabench/demo-llama", "there are none of lorabench/demo-llama, since the hub cannot be reached"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_a_line_before_anything_is_trained(
    model: str, said: str, tmp_path: Path
) -> None:
    ran = run(model, tmp_path / "out", tmp_path / "hub")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith(f"lorabench: weights hub: {said}")
    assert ran.stderr.endswith(": name a folder with *.safetensors, or use random weights\n")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_model_of_the_hub(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(msgspec.json.encode(small_config("llama", **TINY)))
    ran = run(str(config), tmp_path / "out", tmp_path / "hub")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "is no model of the hub: name a folder" in ran.stderr


def test_weights_in_the_cache_are_trained_without_the_hub(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "hub" / "models--some--tiny"
    commit = "0" * 40
    save_with_tokenizer(small_config("llama", **TINY), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    ran = run("some/tiny", tmp_path / "out", tmp_path / "hub")
    assert ran.returncode == 0, ran.stderr
    [record] = read_records(tmp_path / "out")
    assert (record.outcome, record.weights) == ("ok", "pretrained")
