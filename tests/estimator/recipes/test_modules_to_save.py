"""Embedding and head that train beside the adapters, compared with what peft makes and a CPU holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.states import states
from lorabench.estimator.recipes.adapter_file import adapter_file_bytes
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import trace
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.parameters import count_built
from tests.estimator.closed_form.test_memory import measure
from tests.small_models import small_model

pytestmark = pytest.mark.filterwarnings("ignore")

BOTH = {"llama": "embed_tokens,lm_head", "gpt2": "wte,wpe,lm_head", "gpt_neox": "embed_in,lm_head"}


def recipe_of(family: str, names: str, **options: Any) -> Recipe:
    return make_recipe(f"small/{family}", modules_to_save=names, **options)


@pytest.mark.parametrize(
    ("family", "tied", "options"),
    [
        ("llama", False, {}),
        ("llama", True, {"method": "qlora"}),
        ("gpt2", False, {"method": "qlora", "prepare_kbit": False, "adapter_dtype": "float16"}),
        ("gpt2", True, {"adapter_dtype": "bfloat16"}),
        ("gpt_neox", False, {"dtype": "float32"}),
    ],
)
def test_peft_s_copies_are_counted_in_their_dtype(
    family: str, tied: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    spec = small_model(family, tie_word_embeddings=tied)
    recipe = recipe_of(family, BOTH[family], mixed_precision="no", **options)
    model: Any = build_model(ResolvedRecipe(spec, recipe), "cpu")
    counts = ResolvedRecipe(spec, recipe).parameters
    assert counts == count_built(model, spec)
    trained = Counter[str]()
    for parameter in model.parameters():
        trained[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.requires_grad
    said = Counter[str]()
    for term in states(ResolvedRecipe(spec, recipe), "cpu").terms:
        if term.component == "gradients":
            said[term.what.rsplit(", ", 1)[-1]] += term.elements
    assert said == +trained
    tables = 2 * 512 * 128 + (spec.max_position_embeddings * 128 if family == "gpt2" else 0)
    without = ResolvedRecipe(spec, make_recipe(spec.name, **options)).parameters
    assert counts.trainable == without.trainable + tables
    model.save_pretrained(tmp_path)
    assert adapter_file_bytes(ResolvedRecipe(spec, recipe)) == (tmp_path / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("family", "names", "options"),
    [
        ("llama", "embed_tokens,lm_head", {}),
        ("llama", "lm_head", {"gradient_checkpointing": False, "optim": "adamw_torch"}),
        ("llama", "embed_tokens", {"method": "qlora", "gradient_accumulation": 2}),
        ("gpt2", "wte", {"method": "qlora", "optim": "adamw_8bit"}),
        ("gpt_neox", "lm_head", {"optim": "adafactor", "mixed_precision": "no"}),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_estimate_is_what_a_cpu_holds(family: str, names: str, options: dict[str, Any], tied: bool) -> None:
    spec = small_model(family, tie_word_embeddings=tied)
    recipe = recipe_of(family, names, batch_size=2, seq_len=64, **options)
    estimated, measured = estimate_memory(ResolvedRecipe(spec, recipe), "cpu"), measure(ResolvedRecipe(spec, recipe))
    assert estimated.peak_allocated_bytes == pytest.approx(measured.peak_allocated_bytes, rel=0.002)
    assert estimated.components["adapters"] == measured.components["adapters"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("names", ["embed_tokens", "lm_head", "embed_tokens,lm_head"])
@pytest.mark.parametrize("options", [{"method": "qlora"}, {"loss": "liger"}], ids=str)
def test_the_estimate_is_the_trace_s(names: str, options: dict[str, Any], tied: bool) -> None:
    spec = small_model("llama", tie_word_embeddings=tied)
    recipe = recipe_of("llama", names, batch_size=13, seq_len=256, **options)  # enough tokens to be sorted
    estimated, traced = estimate_memory(ResolvedRecipe(spec, recipe)), trace(ResolvedRecipe(spec, recipe))
    assert traced.parameters == ResolvedRecipe(spec, recipe).parameters
    assert 0 <= traced.memory.peak_requested_bytes - estimated.peak_allocated_bytes <= 8 * 256 + 8 * 13 + 512


def test_an_original_stays_beside_its_copy() -> None:
    spec = small_model("llama", tie_word_embeddings=False)
    recipe = recipe_of("llama", "lm_head")
    plain = make_recipe(spec.name)
    more = estimate_memory(ResolvedRecipe(spec, recipe)).phase_peaks_bytes["adapted"]
    assert more - estimate_memory(ResolvedRecipe(spec, plain)).phase_peaks_bytes["adapted"] == 512 * 128 * 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("lm_haed", "no embedding and no head 'lm_haed': did you mean lm_head?"),
        ("q_proj", r"adapters train that one \(--target-modules q_proj\)"),
        ("embed_tokens,model.norm", "no embedding and no head 'model.norm': choose from embed_tokens, lm_head"),
    ],
)
def test_modules_that_the_model_does_not_have_are_refused(names: str, said: str) -> None:
    spec = small_model("llama")
    with pytest.raises(UserError, match=said):
        estimate_memory(ResolvedRecipe(spec, recipe_of("llama", names)))
    with pytest.raises(UserError, match=said):
        build_model(ResolvedRecipe(spec, recipe_of("llama", names)), "meta")
