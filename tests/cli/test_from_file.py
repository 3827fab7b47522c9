"""Commands take the config of another tool instead of a model, and list what they do not take into account."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

import lorabench as api

CONFIG = """
base_model: HuggingFaceTB/SmolLM2-135M
adapter: lora
lora_r: 4
lora_mlp_kernel: false
lora_target_modules: [q_proj, v_proj]
sequence_len: 256
sample_packing: true
deepspeed: zero3.json
"""
LEFT = "deepspeed: zero3.json (weights, gradients or optimizer states are spread over GPUs"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "lora.yml"
    file.write_text(CONFIG, encoding="utf-8")
    return file


def _words(text: str) -> str:
    return " ".join(text.split())


def test_the_answer_says_what_is_not_taken_into_account(lorabench: Any, config: Path) -> None:
    code, out, err = lorabench("estimate", "--from", str(config), "--no-replay")
    assert (code, err) == (0, "")
    assert "SmolLM2-135M lora r4 1×256" in out
    *_, last = _words(out).split("Not taken into account: ")
    assert last.startswith(LEFT)
    assert all(len(line) <= max(80, len(str(config)) + 2) for line in out.splitlines())  # a path stays whole


def test_a_config_may_be_named_as_the_model(lorabench: Any, config: Path) -> None:
    as_model = lorabench("estimate", str(config), "--no-replay", "--format", "json")
    assert as_model == lorabench("estimate", "--from", str(config), "--no-replay", "--format", "json")
    said = json.loads(as_model[1])["imported"]
    assert said["tool"] == "axolotl"
    assert [(each["key"], each["memory"]) for each in said["not_taken_into_account"]] == [("deepspeed", "less memory")]
    assert said["options"]["seq_len"] == 256


def test_options_and_a_model_override_the_config(lorabench: Any, config: Path) -> None:
    arguments = ["--from", str(config), "--seq-len", "64", "--no-replay", "--format", "json"]
    _, out, _ = lorabench("estimate", "Qwen/Qwen2.5-0.5B", *arguments)
    recipe = json.loads(out)["recipe"]
    assert (recipe["model"], recipe["seq_len"], recipe["rank"]) == ("Qwen/Qwen2.5-0.5B", 64, 4)


@pytest.mark.parametrize("format_", ["markdown", "csv"])
def test_other_formats_name_it_too(lorabench: Any, config: Path, format_: str) -> None:
    _, out, _ = lorabench("estimate", "--from", str(config), "--no-replay", "--format", format_)
    if format_ == "csv":
        out = next(csv.DictReader(io.StringIO(out)))["not_taken"]
    assert LEFT in out


def test_plan_searches_what_the_config_does_not_fix(lorabench: Any, config: Path) -> None:
    code, out, _ = lorabench("plan", "--from", str(config), "--gpu", "rtx-4090", "--format", "json")
    assert code == 0
    plan = json.loads(out)
    assert plan["seq_len"] == 256
    assert {choice["recipe"]["rank"] for choice in plan["choices"]} == {4}
    assert plan["imported"]["tool"] == "axolotl"


def test_a_dry_run_lists_the_recipe_of_a_config(lorabench: Any, config: Path) -> None:
    code, out, _ = lorabench("run", str(config), "--dry-run", "--gpu", "rtx-4090")
    assert code == 0
    assert f"not taken into account: {LEFT}" in _words(out)


def test_a_suite_is_still_a_suite(lorabench: Any, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("matrix:\n  model: HuggingFaceTB/SmolLM2-135M\n  seq_len: 64\n", encoding="utf-8")
    code, out, _ = lorabench("run", str(suite), "--dry-run", "--gpu", "rtx-4090")
    assert (code, "SmolLM2-135M lora r16 1×64" in out) == (0, True)


def test_without_a_model_the_command_says_what_to_name(lorabench: Any) -> None:
    code, _, err = lorabench("estimate")
    assert (code, err) == (2, "lorabench: name a MODEL, or the config of another tool with --from FILE\n")


def test_a_missing_file_is_one_line(lorabench: Any, tmp_path: Path) -> None:
    code, _, err = lorabench("estimate", "--from", str(tmp_path / "no.yml"))
    assert (code, err.count("\n")) == (2, 1)
    assert "no such file" in err


def test_a_program_to_rehearse_has_its_own_config(lorabench: Any, config: Path) -> None:
    code, _, err = lorabench("rehearse", "--gpu", "rtx-4090", "--from", str(config), "--", "python", "train.py")
    assert (code, err.count("\n")) == (2, 1)
    assert "--from is for a recipe: the command after -- has a config of its own" in err


def test_underscores_in_options_are_accepted(lorabench: Any) -> None:
    with_dashes = lorabench("estimate", "smollm2-135m", "--no-replay", "--lora-alpha", "8", "--seq-len", "64")
    assert lorabench("estimate", "smollm2-135m", "--no_replay", "--lora_alpha", "8", "--seq_len", "64") == with_dashes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--adapter", "qlora"], "no option --adapter: write --method"),
        (["--rl", "dpo"], "no option --rl: a recipe is supervised fine-tuning"),
        (["--target-modules", "all"], "write all-linear"),
        (["--config", "x.yml"], "write --from FILE"),
    ],
)
def test_words_of_other_tools_are_explained(lorabench: Any, arguments: list[str], said: str) -> None:
    code, _, err = lorabench("estimate", "smollm2-135m", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_python_reads_a_config(config: Path) -> None:
    answer = api.estimate(from_file=config, seq_len=128, replay=False)
    assert answer.recipe.seq_len == 128
    assert answer.imported is not None
    assert [each.key for each in answer.imported.not_taken_into_account] == ["deepspeed"]
    assert api.make_recipe(from_file=config).rank == 4
