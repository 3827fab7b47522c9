"""Recipes on a null GPU: the answer has what people need to judge it. They need a CUDA build of torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorabench.cli import main
from tests.small_models import TINY, small_config

pytestmark = pytest.mark.cuda_build


def test_a_rehearsed_recipe_tells_assumptions_guesses_and_launches(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small_config("mixtral", **TINY)))
    options = ["--method", "lora", "--seq-len", "64", "--launches", "--steps", "1", "--format", "json"]
    with pytest.raises(SystemExit) as stopped:
        main(["rehearse", str(config), "--gpu", "a100-80gb", *options])
    said = capfd.readouterr()
    assert stopped.value.code == 0, said.err
    rehearsal = json.loads(said.out)
    assert rehearsal["gpu"] == "a100-sxm-80gb"
    assert any("a100-80gb means a100-sxm-80gb" in assumption for assumption in rehearsal["assumptions"])
    [record] = rehearsal["records"]
    assert record["rehearsal"]["memory"]["peak_allocated_bytes"] > 0
    assert {one["kind"] for one in rehearsal["noticed"]} == {"balanced"}
    # Two layers of four experts with three products each, forward and backward, in five steps and more.
    assert sum(rehearsal["launches"].values()) > 2 * 4 * 3 * 2 * 5
    assert rehearsal["refused"] == []
