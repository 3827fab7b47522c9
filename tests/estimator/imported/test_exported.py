"""Recipes come back from the configs that are written of them, and scripts train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.asked import asked
from lorabench.estimator.imported.exported import exported
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.saved_models import save_with_tokenizer
from tests.small_models import small_config

MODELS = [find_model(name) for name in ("HuggingFaceTB/SmolLM2-135M", "gpt2", "microsoft/Phi-3-mini-4k-instruct")]
SHARED: dict[str, Any] = {
    "batch_size": st.integers(1, 64),
    "seq_len": st.integers(1, 1024),
    "gradient_accumulation": st.integers(1, 64),
    "optim": st.sampled_from(sorted(OPTIMIZERS)),
    "attn_implementation": st.sampled_from(["sdpa", "eager", "flash_attention_2"]),
    "empty_cache_steps": st.none() | st.integers(1, 9),
}
ADAPTERS: dict[str, Any] = {
    "rank": st.integers(1, 256),
    "lora_alpha": st.integers(1, 512),
    "lora_dropout": st.sampled_from([0.0, 0.05, 0.1]),
    "use_rslora": st.booleans(),
    "target_modules": st.sampled_from(["all-linear", "attention", "mlp"]),
    "modules_to_save": st.none() | st.just("lm_head"),
}
SAID: dict[str, dict[str, dict[str, Any]]] = {
    "axolotl": {
        "full": {"method": st.just("full"), "dtype": st.just("bfloat16")},
        "lora": {"method": st.just("lora"), "adapter_dtype": st.sampled_from(["float32", "bfloat16"])},
        "qlora": {
            "method": st.just("qlora"),
            "quant_type": st.sampled_from(["nf4", "fp4"]),
            "double_quant": st.booleans(),
            "prepare_kbit": st.just(False),
        },
    },
    "llamafactory": {
        "full": {"method": st.just("full"), "dtype": st.just("float32")},
        "lora": {"method": st.just("lora")},
        "qlora": {
            "method": st.just("qlora"),
            "quant_type": st.sampled_from(["nf4", "fp4"]),
            "double_quant": st.booleans(),
            "recast": st.booleans(),
        },
    },
    "trl": {
        "full": {"method": st.just("full"), "dtype": st.sampled_from(["float32", "bfloat16"])},
        "lora": {"method": st.just("lora"), "dtype": st.sampled_from(["float32", "bfloat16"])},
        "qlora": {
            "method": st.just("qlora"),
            "adapter_dtype": st.just("bfloat16"),
            "double_quant": st.booleans(),
            "prepare_kbit": st.just(False),
        },
    },
}
"""Tool and method → options, besides those of all, that the tool can say."""


LOSSES = {"axolotl": ["standard", "cut-cross-entropy"], "llamafactory": ["standard"], "trl": ["trl"]}


def _checkpointing(draw: st.DrawFn) -> dict[str, bool]:
    on = draw(st.booleans())
    return {"gradient_checkpointing": on, "use_reentrant": on and draw(st.booleans())}


@st.composite
def recipes(draw: st.DrawFn, tool: str) -> ResolvedRecipe:
    method = draw(st.sampled_from(["full", "lora", "qlora"]))
    options = {name: draw(values) for name, values in {**SHARED, **SAID[tool][method]}.items()}
    options["loss"] = draw(st.sampled_from(LOSSES[tool]))
    if method != "full":
        options |= {name: draw(values) for name, values in ADAPTERS.items()}
    several = options["batch_size"] > 1 or tool != "trl"  # TRL pads a batch of one sequence not at all
    options["padding"] = several and options["attn_implementation"] != "flash_attention_2" and draw(st.booleans())
    return recipe_for(draw(st.sampled_from(MODELS)), **options, **_checkpointing(draw))


@pytest.mark.parametrize("tool", SAID)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_recipe_is_the_same_after_export_and_import(
    tool: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    resolved = data.draw(recipes(tool))
    file = tmp_path_factory.mktemp("exported") / "config.yml"
    file.write_text(exported(resolved, tool), encoding="utf-8")
    found = asked(None, file, {}).resolved()
    before, after = resolved.recipe.settings(), found.recipe.settings()
    assert resolved.target_modules == found.target_modules
    before.pop("target_modules", None)
    after.pop("target_modules", None)
    assert before == after


def _llama(**options: Any) -> ResolvedRecipe:
    return recipe_for(find_model("meta-llama/Llama-3.1-8B"), **options)


@pytest.mark.parametrize(
    ("tool", "options", "message"),
    [
        ("axolotl", {"keep_outputs": True}, "axolotl .* cannot say keep_outputs True"),
        ("axolotl", {"method": "qlora", "prepare_kbit": True}, "axolotl .* cannot say prepare_kbit True"),
        ("llamafactory", {"method": "lora", "dtype": "float32"}, "LLaMA-Factory .* cannot say dtype float32"),
        ("trl", {"dtype": "float32"}, "TRL .* cannot say loss standard, and trains with trl: use that"),
        ("python", {"loss": "cut-cross-entropy"}, "cannot say loss cut-cross-entropy: use standard or liger"),
        (
            "trl",
            {"method": "qlora", "loss": "trl"},
            "TRL .* cannot say adapter_dtype float32, and trains with bfloat16",
        ),
        ("axolotl", {"method": "ia3"}, "axolotl has no IA3: write --as python"),
        ("python", {"keep_outputs": True}, "cannot say keep_outputs True: Trainer keeps the loss alone"),
        ("python", {"loss": "legacy"}, "cannot say loss legacy"),
    ],
)
def test_what_a_tool_cannot_say_is_refused(tool: str, options: dict[str, Any], message: str) -> None:
    options = {"target_modules": "q_proj", **options}
    with pytest.raises(UserError, match=message):
        exported(_llama(**options), tool)


def test_comments_name_what_the_tool_does_otherwise() -> None:
    written = exported(_llama(loss="liger"), "llamafactory")
    assert "# not as in the recipe: enable_liger_kernel: true (Liger's kernels for norms" in written


def test_an_accelerate_config_holds_the_launch() -> None:
    written = yaml.safe_load(exported(_llama(), "accelerate"))
    assert (written["num_processes"], written["mixed_precision"]) == (1, "bf16")


def test_a_config_of_one_tool_becomes_one_of_another(tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    text = "base_model: gpt2\nadapter: lora\nlora_r: 4\nlora_target_linear: true\nsample_packing: true\n"
    file.write_text(text, encoding="utf-8")
    written = yaml.safe_load(exported(asked(None, file, {}).resolved(), "llamafactory"))
    assert (written["lora_rank"], written["lora_target"], written["cutoff_len"]) == (4, "all", 512)


@pytest.mark.versions
def test_the_script_trains(tmp_path: Path) -> None:
    spec = save_with_tokenizer(small_config("llama"), tmp_path / "saved")
    script, text = tmp_path / "train.py", tmp_path / "text.txt"
    options = {"adapter_dtype": "bfloat16", "use_reentrant": True, "optim": "adamw_torch"}
    resolved = recipe_for(spec, seq_len=16, batch_size=2, **options)
    script.write_text(exported(resolved, "python"), encoding="utf-8")
    text.write_text("the of to and in a " * 40, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(text), "2"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'train_loss'" in done.stdout
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_every_script_is_python(method: str) -> None:
    for options in ({}, {"loss": "liger"}, {"gradient_checkpointing": False}):
        compile(exported(_llama(method=method, **options), "python"), "train.py", "exec")
