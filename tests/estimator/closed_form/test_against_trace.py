"""The closed form meets the trace of the real step: a seeded sample of all that the command line can ask for."""

from __future__ import annotations

import random
from functools import cache
from statistics import median, quantiles
from typing import Any

import pytest

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import COMPONENTS, Breakdown
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import CHOICES, Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import FAMILIES, MIXTURES, small_config
from tests.traced_tensors import traced_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

METHODS = ("full", "lora", "qlora")
"""Those of the sample; the others are added in `test_methods`."""
SAMPLED_FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"),
    *("phi3", "granite", "gpt2", "gpt_neox", "mixtral", "qwen3_moe"),
)
OPTIMIZERS = (
    *("adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit", "sgd", "adafactor"),
)
"""Written out, so that what is added elsewhere leaves the sample as it is. `test_an_added_family_meets_the_trace` takes
the other families, and the tests of optimizers every row of their table."""
PARTS = 24
RECIPES_A_PART = 21


def sample_model(draw: random.Random) -> ModelSpec:
    family = draw.choice(SAMPLED_FAMILIES)
    changes: dict[str, Any] = {
        "vocab_size": draw.choice([1000, 4096, 8192]),
        "hidden_size": draw.choice([128, 256, 512]),
        "num_hidden_layers": draw.choice([2, 3]),
        "tie_word_embeddings": draw.random() < 0.4,
    }
    changes["intermediate_size"] = changes["hidden_size"] * draw.choice([2, 3, 4])
    return read_config(small_config(family, **changes), f"small/{family}")


def sample_options(draw: random.Random, spec: ModelSpec) -> dict[str, Any]:
    method = draw.choice(METHODS)
    options: dict[str, Any] = {
        "method": method,
        "dtype": draw.choice(CHOICES["dtype"]),
        "mixed_precision": draw.choice(CHOICES["mixed_precision"]),
        "optim": draw.choice(OPTIMIZERS),
        "batch_size": draw.choice([1, 2, 3, 4]),
        "seq_len": draw.choice([128, 256, 384, 511, 777, 1024]),
        "gradient_accumulation": draw.choice([1, 1, 2]),
        "gradient_checkpointing": draw.random() < 0.5,
        "attn_implementation": draw.choice(CHOICES["attn_implementation"]),
        "loss": draw.choice(CHOICES["loss"]),
    }
    if method != "full":
        table = spec.embeddings[0].name.split(".")[-2]
        targets = ["all-linear", "attention", "mlp", draw.choice(["v_proj,q_proj", "o_proj"])]
        options |= {
            "rank": draw.choice([1, 4, 8, 16, 64]),
            "lora_dropout": draw.choice([0.0, 0.05]),
            "adapter_dtype": draw.choice(CHOICES["adapter_dtype"]),
            "target_modules": draw.choice(targets),
            "modules_to_save": draw.choice([None, None, "lm_head", table, f"{table},lm_head"]),
        }
    if method == "qlora":
        options |= {
            "quant_type": draw.choice(CHOICES["quant_type"]),
            "double_quant": draw.random() < 0.5,
            "prepare_kbit": draw.random() < 0.5,
        }
    return options


@cache
def sample(part: int) -> list[tuple[ModelSpec, Recipe]]:
    """Return recipes that the real libraries can run, drawn anew where they cannot."""
    draw = random.Random(part)
    found: list[tuple[ModelSpec, Recipe]] = []
    while len(found) < RECIPES_A_PART:
        spec = sample_model(draw)
        try:
            recipe = make_recipe(spec.name, **sample_options(draw, spec))
            refuse_impossible(ResolvedRecipe(spec, recipe))
            estimate_memory(ResolvedRecipe(spec, recipe))
        except UserError:
            continue
        found.append((spec, recipe))
    return found


def tensor_bytes(memory: Breakdown) -> int:
    """Return the peak without cuBLAS' workspaces: beside small models they would hide an error."""
    return memory.peak_allocated_bytes - memory.components["workspaces"]


@pytest.mark.parametrize("part", range(PARTS))
def test_the_closed_form_meets_the_trace(part: int) -> None:
    errors: dict[str, float] = {}
    of_components: dict[str, float] = {}
    for spec, recipe in sample(part):
        what = f"{recipe.describe()} of {spec.config}"
        traced, estimated = traced_tensors(ResolvedRecipe(spec, recipe)), estimate_memory(ResolvedRecipe(spec, recipe))
        errors[what] = abs(tensor_bytes(estimated) / tensor_bytes(traced) - 1)
        of_components[what] = _worst_component(traced, estimated)
    assert median(errors.values()) <= 0.0005
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 0.01, (worst, errors[worst])
    assert median(of_components.values()) <= 0.0005
    # At the peak itself what is a gradient already, or is saved no longer, may be a temporary tensor to the other.
    assert quantiles(of_components.values(), n=5)[-1] <= 0.01, of_components


@pytest.mark.parametrize("family", SAMPLED_FAMILIES)
def test_the_closed_form_meets_the_trace_on_a_gpu_without_flash_attention(family: str) -> None:
    spec = read_config(small_config(family, vocab_size=1000, hidden_size=256, num_hidden_layers=3), f"small/{family}")
    attention = "eager" if spec.caps_scores or not spec.has_sdpa else "sdpa"
    for dtype, batch_size, checkpointing in (("float16", 1, True), ("float16", 2, False), ("bfloat16", 2, True)):
        options = {"dtype": dtype, "mixed_precision": {"float16": "fp16", "bfloat16": "bf16"}[dtype]}
        shape = {"batch_size": batch_size, "seq_len": 384, "gradient_checkpointing": checkpointing}
        recipe = make_recipe(
            spec.name, method="lora", lora_dropout=0.0, attn_implementation=attention, **options, **shape
        )
        traced = traced_tensors(ResolvedRecipe(spec, recipe), compute_capability="7.5")
        estimated = estimate_memory(ResolvedRecipe(spec, recipe), compute_capability="7.5")
        assert abs(tensor_bytes(estimated) / tensor_bytes(traced) - 1) <= 0.001, recipe.describe()


def _worst_component(traced: Breakdown, estimated: Breakdown) -> float:
    """Return by which part of the peak the component differs that differs most."""
    apart = (abs(estimated.components[name] - traced.components[name]) for name in COMPONENTS)
    return max(apart) / tensor_bytes(traced)


def test_the_sample_covers_the_option_space() -> None:
    drawn = [recipe for part in range(PARTS) for _, recipe in sample(part)]
    assert len(drawn) >= 500
    assert {recipe.model for recipe in drawn} == {f"small/{family}" for family in SAMPLED_FAMILIES}
    adapted = {(recipe.model, recipe.settings().get("target_modules")) for recipe in drawn}
    assert adapted >= {
        (f"small/{family}", "all-linear") for family in SAMPLED_FAMILIES
    }  # in mixtures, of the experts too
    for option, choices in CHOICES.items():
        covered = {recipe.settings().get(option) for recipe in drawn} - {None}
        assert covered == set({"method": METHODS, "optim": OPTIMIZERS}.get(option, choices)), option


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(SAMPLED_FAMILIES)))
@pytest.mark.parametrize(
    "options",
    [
        {"method": "full"},
        {"method": "full", "dtype": "bfloat16", "mixed_precision": "no", "gradient_checkpointing": False},
        {"method": "lora", "gradient_checkpointing": False},
        {"method": "qlora", "batch_size": 2},
        {"method": "lora", "attn_implementation": "eager", "gradient_checkpointing": False},
    ],
)
def test_an_added_family_meets_the_trace(family: str, options: dict[str, Any]) -> None:
    spec = read_config(
        small_config(family, vocab_size=4096, hidden_size=512, intermediate_size=1408), f"small/{family}"
    )
    recipe = make_recipe(spec.name, **{"seq_len": 512, **options})
    traced, estimated = traced_tensors(ResolvedRecipe(spec, recipe)), estimate_memory(ResolvedRecipe(spec, recipe))
    assert abs(tensor_bytes(estimated) / tensor_bytes(traced) - 1) <= 0.0005


REENTRANT: list[dict[str, Any]] = [
    {"method": "full", "dtype": "bfloat16", "mixed_precision": "no", "gradient_accumulation": 2},
    {"method": "lora", "batch_size": 2, "target_modules": "attention"},
    {"method": "qlora", "attn_implementation": "eager", "target_modules": "attention", "batch_size": 2},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", REENTRANT, ids=lambda options: options["method"])
def test_reentrant_checkpointing_meets_the_trace(family: str, options: dict[str, Any]) -> None:
    """With a small vocabulary the peak is in the backward pass of a layer, which runs alone."""
    spec = read_config(small_config(family, vocab_size=1000, hidden_size=256, num_hidden_layers=3), f"small/{family}")
    if spec.caps_scores or not spec.has_sdpa:
        options = options | {"attn_implementation": "eager"}
    resolved = ResolvedRecipe(spec, make_recipe(spec.name, seq_len=384, use_reentrant=True, **options))
    traced, estimated = traced_tensors(resolved), estimate_memory(resolved)
    assert tensor_bytes(estimated) == pytest.approx(tensor_bytes(traced), rel=0.0005)
    assert estimated.phase == traced.phase == "backward"
    # In GPT-2 and Granite a sum of the residual stream is saved to one and temporary to the other, as without reentry.
    assert _worst_component(traced, estimated) <= (0.05 if family in ("gpt2", "granite") else 0.01)


KEPT: list[dict[str, Any]] = [
    {"method": "full", "gradient_checkpointing": False, "batch_size": 2},
    {"method": "lora", "loss": "legacy", "gradient_accumulation": 2},
    {"method": "qlora", "mixed_precision": "no", "use_reentrant": True, "target_modules": "attention"},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", KEPT, ids=lambda options: options["method"])
def test_a_loop_that_keeps_the_outputs_meets_the_trace(family: str, options: dict[str, Any]) -> None:
    """In forward, what the last micro-batch left is there too."""
    if family in MIXTURES:
        options = {**options, **({} if options["method"] == "full" else {"target_modules": "attention"})}
    spec = read_config(small_config(family, vocab_size=3000, hidden_size=256, num_hidden_layers=2), f"small/{family}")
    attention = "eager" if spec.caps_scores or not spec.has_sdpa else "sdpa"
    recipe = make_recipe(spec.name, seq_len=384, keep_outputs=True, attn_implementation=attention, **options)
    resolved = ResolvedRecipe(spec, recipe)
    traced, estimated = traced_tensors(resolved), estimate_memory(resolved)
    assert tensor_bytes(estimated) == pytest.approx(tensor_bytes(traced), rel=0.001)
    for phase in ("forward", "backward", "optimizer"):
        assert estimated.phase_peaks_bytes[phase] == pytest.approx(traced.phase_peaks_bytes[phase], rel=0.001)


@pytest.mark.parametrize("family", ["gpt_neox", "phi3"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_eager_attention_copies_no_queries_that_lie_by_head_already(family: str, batch_size: int) -> None:
    """With a small vocabulary the peak is in a layer's recomputation, where a copy would stand beside the original."""
    spec = read_config(small_config(family, vocab_size=1000, hidden_size=256), f"small/{family}")
    options = {"method": "qlora", "rank": 64, "target_modules": "attention", "mixed_precision": "no"}
    recipe = make_recipe(spec.name, **options, attn_implementation="eager", batch_size=batch_size, seq_len=256)
    resolved = ResolvedRecipe(spec, recipe)
    traced, estimated = traced_tensors(resolved), estimate_memory(resolved)
    assert estimated.phase == "backward"
    assert tensor_bytes(estimated) == pytest.approx(tensor_bytes(traced), rel=0.001)


@pytest.mark.parametrize("activation", ["gelu", "gelu_fast", "gelu_new"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_an_activation_that_is_written_out_saves_more(activation: str, checkpointing: bool) -> None:
    """EleutherAI/gpt-neox-20b has gelu_fast, of seven operations."""
    config = small_config("gpt_neox", vocab_size=1000, hidden_size=256, intermediate_size=1024, hidden_act=activation)
    spec = read_config(config, "small/gpt_neox")
    options = {"method": "qlora", "lora_dropout": 0.0, "batch_size": 2, "seq_len": 384}
    resolved = ResolvedRecipe(spec, make_recipe(spec.name, gradient_checkpointing=checkpointing, **options))
    traced, estimated = traced_tensors(resolved), estimate_memory(resolved)
    assert abs(tensor_bytes(estimated) / tensor_bytes(traced) - 1) <= 0.001
