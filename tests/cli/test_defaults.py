"""What people leave open: every model answers, what was chosen is said, and all commands choose the same."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from lorabench.estimator.models.catalogue import find_model, model_names
from lorabench.estimator.models.read_config import MODEL_TYPES, has_closed_form
from lorabench.estimator.recipes.recipe import CHOICES

FP16_QLORA = (
    "dtype float16 instead of bfloat16: 4-bit layers return the dtype of their input, and autocast to float16 refuses "
    "to concatenate bfloat16 in the rotary embedding"
)
GPT2 = "seq_len 1024 instead of 2048: openai-community/gpt2 has learned positions for 1024 tokens"
GEMMA = (
    "attn_implementation eager instead of sdpa: google/gemma-2-9b caps its attention scores, which sdpa does not "
    "support"
)
MIXTRAL = (
    "target_modules attention instead of all-linear: peft has no dropout for adapters of fused experts, which "
    "mistralai/Mixtral-8x7B-v0.1 has"
)
CHOSEN = {
    "gpt2": ("seq_len", 1024),
    "gemma2": ("attn_implementation", "eager"),
    "mixtral": ("target_modules", "attention"),
    "qwen3_moe": ("target_modules", "attention"),
}
"""model_type → the setting whose default it cannot have, and what its users run."""
WITHOUT_IA3_TARGETS = ("granite", "olmo2", "phi3", "qwen3_moe")
"""Of which peft names none."""


def json_of(lorabench: Any, *arguments: str) -> Any:
    code, out, err = lorabench(*arguments, "--format", "json")
    assert (code, err) == (0, "")
    return json.loads(out)


def one_of_each_architecture() -> list[str]:
    """Return the first model of the catalogue of each model_type that has a closed form."""
    models: dict[str, str] = {}
    for name in model_names():
        spec = find_model(name)
        if has_closed_form(spec):
            models.setdefault(spec.model_type, name)
    return sorted(models.values())


@pytest.mark.parametrize("method", CHOICES["method"])
@pytest.mark.parametrize("model", one_of_each_architecture())
def test_every_architecture_answers_without_an_option(lorabench: Any, model: str, method: str) -> None:
    if method == "qlora" and find_model(model).model_type == "falcon_mamba":
        pytest.skip("its trace, which has a step for each token, takes minutes")
    if method == "qlora" and find_model(model).model_type == "mamba":
        code, _, err = lorabench("estimate", model, "--method", method)
        assert code == 2  # its scan computes with the weight of a linear layer
        assert "cannot be traced with this recipe" in err
        return
    said = json_of(lorabench, "estimate", model, "--method", method)
    assert said["memory"]["peak_allocated_bytes"] > 0
    if find_model(model).model_type not in MODEL_TYPES:
        return
    setting, value = CHOSEN.get(find_model(model).model_type, ("", None))
    if setting == "target_modules" and method in ("full", "ia3"):
        setting = ""
    if method == "ia3" and find_model(model).model_type in WITHOUT_IA3_TARGETS:
        setting, value = "target_modules", "all-linear"
    assert [one.partition(" instead")[0] for one in said.get("assumptions", [])] == [f"{setting} {value}"] * bool(
        setting
    )
    assert not setting or said["recipe"][setting] == value


@pytest.mark.parametrize(
    ("model", "options", "assumption"),
    [
        ("gpt2", (), GPT2),
        ("gemma-2-9b", (), GEMMA),
        ("mixtral-8x7b-v0.1", (), MIXTRAL),
        ("mixtral-8x7b-v0.1", ("--method", "qlora"), MIXTRAL),
        ("llama-3.2-1b", ("--method", "qlora", "--mixed-precision", "fp16"), FP16_QLORA),
        ("llama-2-7b-chat", (), "model llama-2-7b-chat means meta-llama/Llama-2-7b-chat-hf (same shapes)"),
        ("mixtral-8x7b-v0.1", ("--lora-dropout", "0.1"), MIXTRAL),
        (
            "mixtral-8x7b-v0.1",
            ("--target-modules", "all-linear"),
            MIXTRAL.replace("target_modules attention instead of all-linear", "lora_dropout 0 instead of 0.05"),
        ),
    ],
)
@pytest.mark.parametrize(
    ("format_", "prefix"), [("table", "assumed: "), ("markdown", "**Assumed**: "), ("csv", ""), ("json", "")]
)
def test_what_was_chosen_instead_is_said_in_every_format(
    lorabench: Any, model: str, options: tuple[str, ...], assumption: str, format_: str, prefix: str
) -> None:
    code, out, err = lorabench("estimate", model, "--method", "lora", *options, "--format", format_)
    assert (code, err) == (0, "")
    if format_ == "csv":
        (row,) = csv.DictReader(io.StringIO(out))
        assert row["assumptions"] == assumption
    elif format_ == "json":
        assert json.loads(out)["assumptions"] == [assumption]
    else:
        assert prefix + assumption in " ".join(out.split())
        assert format_ == "markdown" or max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gpt2", ("--seq-len", "1k")),
        ("gemma-2-9b", ("--attn-implementation", "flash_attention_2")),
        ("mixtral-8x7b-v0.1", ("--lora-dropout", "0")),
        ("mixtral-8x7b-v0.1", ("--target-modules", "attention")),
        ("mixtral-8x7b-v0.1", ("--method", "full")),
        ("llama-3.1-8b", ()),
    ],
)
def test_nothing_is_said_of_what_was_asked_for_or_is_the_default(
    lorabench: Any, model: str, options: tuple[str, ...]
) -> None:
    assert "assumptions" not in json_of(lorabench, "estimate", model, "--method", "lora", *options)
    assert "assumed" not in lorabench("estimate", model, "--method", "lora", *options)[1]


@pytest.mark.parametrize(
    ("model", "assumption"), [("gpt2", GPT2), ("gemma-2-9b", GEMMA), ("mixtral-8x7b-v0.1", MIXTRAL)]
)
def test_all_commands_choose_the_same(lorabench: Any, tmp_path: Path, model: str, assumption: str) -> None:
    estimated = json_of(lorabench, "estimate", model, "--method", "lora")
    held = json_of(lorabench, "plan", model, "--all-gpus")
    assert (held["recipe"], held["assumptions"]) == (estimated["recipe"], [assumption])
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"matrix: {{model: [{model}]}}")
    for target in (model, str(suite)):
        code, out, err = lorabench("run", target, "--dry-run", "--gpu", "b200")
        assert (code, err) == (0, "")
        assert f"assumed: {assumption}" in " ".join(out.split())
        assert max(map(len, out.splitlines())) <= 80


def test_a_plan_says_what_it_did_not_search(lorabench: Any) -> None:
    for model, options, assumptions in (
        ("gpt2", (), [GPT2]),
        ("gpt2", ("--seq-len", "512"), []),
        ("mixtral-8x7b-v0.1", ("--method", "qlora", "--no-prepare-kbit"), [MIXTRAL]),
    ):
        plan = json_of(lorabench, "plan", model, "--gpu", "h200", *options)
        assert plan.get("assumptions", []) == assumptions
    assert f"**Assumed**: {GPT2}" in lorabench("plan", "gpt2", "--gpu", "t4", "--format", "markdown")[1]


def test_a_trace_chooses_as_an_estimate(lorabench: Any) -> None:
    traced = json_of(lorabench, "trace", "demo-gpt2", "--gpu", "h100")
    estimated = json_of(lorabench, "estimate", "demo-gpt2", "--method", "lora", "--gpu", "h100")
    assert traced["recipe"] == estimated["recipe"]
    assert traced["assumptions"] == estimated["assumptions"]
    assert [one.split()[0] for one in traced["assumptions"]] == ["seq_len", "gpu"]


def test_what_would_make_a_mixture_fit_has_the_defaults_that_it_can_have(lorabench: Any) -> None:
    """One of 179 GiB holds its 16-bit weights, 87 GiB, with adapters, not in full fine-tuning."""
    whole = json_of(lorabench, "estimate", "mixtral-8x7b-v0.1", "--method", "full", "--gpu", "b200")
    assert {"method": "lora", "dtype": "bfloat16"} in [change["settings"] for change in whole["changes"]]
    changed = json_of(lorabench, "estimate", "mixtral-8x7b-v0.1", "--method", "lora", "--gpu", "b200")
    assert changed["fits"]


def test_a_condition_of_a_suite_holds_for_what_was_chosen(lorabench: Any, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "matrix: {model: [gpt2, gemma-2-2b, smollm2-135m]}\n"
        "exclude:\n  - {attn_implementation: eager}\n  - {seq_len: 1024}\n"
    )
    code, out, _ = lorabench("run", str(suite), "--dry-run", "--gpu", "24GB")
    assert code == 0
    assert "1 recipe," in out
    assert "SmolLM2-135M lora r16 1×2048" in out


def test_a_page_says_what_was_assumed(lorabench: Any, tmp_path: Path) -> None:
    code, out, err = lorabench("report", "--model", "gpt2", "--gpu", "a100-80gb", "-o", str(tmp_path / "page.html"))
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert f"assumed: {GPT2}" in said
    assert "assumed: gpu a100-80gb means a100-sxm-80gb, not a100-pcie-80gb (as much memory, another speed)" in said


@pytest.mark.parametrize(
    ("name", "canonical", "assumed"),
    [
        ("rtx4090", "rtx-4090", False),
        ("4090", "rtx-4090", False),
        ("NVIDIA GeForce RTX 4090", "rtx-4090", False),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb", False),
        ("A100-80GB", "a100-sxm-80gb", True),
        ("h100", "h100-sxm", True),
        ("24", "24GB", False),
        ("24GB", "24GB", False),
    ],
)
def test_every_command_takes_a_gpu_by_the_names_that_people_write(
    lorabench: Any, name: str, canonical: str, assumed: bool
) -> None:
    estimated = json_of(lorabench, "estimate", "smollm2-135m", "--method", "lora", "--gpu", name)
    planned = json_of(lorabench, "plan", "smollm2-135m", "--method", "lora", "--gpu", name)
    assert estimated["gpu"] == planned["gpu"] == canonical
    assert ("assumptions" in estimated) == ("assumptions" in planned) == assumed
    assert estimated.get("assumptions") == planned.get("assumptions")
    _, out, _ = lorabench("run", "smollm2-135m", "--dry-run", "--gpu", name)
    assert f"on {canonical} (" in out
    assert ("assumed: gpu" in out) == assumed
