"""Architectures without a closed form: their shapes are read from the model that transformers builds."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.introspect import introspect
from lorabench.estimator.models.read_config import has_closed_form, read_config
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.built_models import listed_shapes
from tests.small_models import FAMILIES, small_config

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
JETMOE = {"model_type": "jetmoe", **GROUPED}
OTHERS: dict[str, dict[str, Any]] = {
    "helium": GROUPED,
    "starcoder2": {**SIZES, "num_key_value_heads": 2},
    "opt": {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "falcon": {**SIZES, "multi_query": True},
    "olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2},
}
"""model_type without a file of its own → a small config. Some are recorded, with other flags."""


def other_config(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **OTHERS[model_type], **changes}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_census_of_a_family_lists_what_its_own_file_lists(family: str) -> None:
    config = read_config(small_config(family), family).config
    known, counted = read_config(config, family), introspect(config, family)
    assert listed_shapes(counted) == listed_shapes(known)
    assert counted.parameters_by_part == known.parameters_by_part
    for attribute in ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        assert getattr(counted, attribute) == getattr(known, attribute)
    assert (counted.layers_path, counted.learned_positions) == (known.layers_path, known.learned_positions)
    assert {linear.name for group in counted.layers for linear in group.linears} == {
        linear.name for group in known.layers for linear in group.linears
    }


def test_helium_has_the_parameters_of_its_layers() -> None:
    spec = read_config(other_config("helium"), "small/helium")
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64  # q, o; k, v; feed-forward; two norms
    assert spec.parameters == 2 * layer + 2 * 512 * 64 + 64
    assert spec.parameters_by_part["feed_forward"] == 2 * 3 * 64 * 96
    assert not has_closed_form(spec)


def test_what_is_neither_attention_nor_feed_forward_is_other() -> None:
    parts = read_config(other_config("mamba"), "small/mamba").parameters_by_part
    assert parts["attention"] == parts["feed_forward"] == 0 < parts["other"]


def test_keys_that_say_nothing_of_shapes_are_left_out() -> None:
    spoken = other_config("helium", torch_dtype="bfloat16", transformers_version="4.48.0", eos_token_id=99999)
    assert read_config(spoken, "one").config == read_config(other_config("helium"), "other").config


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("model_type", ["helium", "starcoder2", "opt", "falcon"])
def test_an_architecture_without_a_closed_form_is_estimated_by_its_trace(model_type: str, method: str) -> None:
    spec = read_config(other_config(model_type), f"small/{model_type}")
    recipe = make_recipe(spec.name, method=method, seq_len=64, optim="adamw_torch")
    estimate = estimate_recipe(ResolvedRecipe(spec, recipe))
    assert estimate.source == "trace"
    adapters = sum(
        group.count * 16 * (linear.in_features + linear.out_features)
        for group in spec.layers
        for linear in group.linears
    )
    trainable = spec.parameters if method == "full" else adapters
    assert (estimate.parameters.total, estimate.parameters.trainable) == (
        spec.parameters + (0 if method == "full" else adapters),
        trainable,
    )
    terms = {term.component: term for term in estimate.states}
    assert terms["optimizer_states"].bytes == 8 * trainable  # the step counters are the host's
    assert terms["gradients"].bytes == 4 * trainable
    # transformers quantises what is nn.Linear itself, which Falcon's own class of linear layers is not.
    assert (spec.linear_parameters == 0) == (model_type == "falcon")
    quantized = spec.linear_parameters if method == "qlora" else 0
    assert estimate.parameters.quantized == quantized
    assert ("quantized_weights" in terms) == (quantized > 0)
    memory = estimate.memory
    assert memory.peak_reserved_range_bytes is None  # the allocator was replayed
    assert memory.peak_reserved_bytes is not None
    assert memory.peak_allocated_bytes <= memory.peak_reserved_bytes


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"model_type": "biogpt", **SIZES}, {"method": "lora"}),  # masks padding even where there is none
        ({"model_type": "diffllama", **GROUPED}, {"method": "full"}),  # draws parameters that no device is given
        ({"model_type": "gemma4_text", **GROUPED}, {"method": "lora"}),  # heads differ from layer to layer
        ({"model_type": "modernbert-decoder", **SIZES, "pad_token_id": 0}, {"method": "lora"}),  # insists on padding
        (
            {"model_type": "openai-gpt", "vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4},
            # Its blocks are no layers that can be checkpointed.
            {"method": "qlora", "attn_implementation": "eager", "gradient_checkpointing": False},
        ),
        (
            {"model_type": "llama4_text", **GROUPED, "intermediate_size_mlp": 96, "num_local_experts": 4},
            {"method": "qlora", "target_modules": "attention"},  # experts are taken apart to be quantised
        ),
    ],
    ids=lambda value: value.get("model_type") or value["method"],
)
def test_an_odd_architecture_is_traced_too(config: dict[str, Any], options: dict[str, Any]) -> None:
    spec = read_config(config, "small")
    recipe = make_recipe(spec.name, seq_len=64, optim="adamw_torch", **options)
    estimate = estimate_recipe(ResolvedRecipe(spec, recipe))
    trained = estimate.parameters.trainable
    assert trained == spec.parameters if recipe.adapter is None else 0 < trained < spec.parameters
    assert {term.component: term.bytes for term in estimate.states}["optimizer_states"] == 8 * trained
    assert estimate.parameters.quantized >= (spec.parameters // 2 if recipe.quantization is not None else 0)


def test_families_with_a_closed_form_are_never_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    spec = read_config(small_config("llama"), "small/llama")
    assert estimate_recipe(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=64))).source == "closed form"


def test_without_torch_the_families_that_need_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"helium.*no closed form.*gemma.*llama.*torch.*lorabench\[bench\]"):
        read_config(other_config("helium"), "small/helium")


def test_without_peft_the_trace_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read_config(other_config("helium"), "small/helium")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"no closed form.*needs peft.*lorabench\[bench\]"):
        estimate_recipe(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=64)))


def test_a_mixture_whose_experts_peft_would_adapt_gets_adapters_that_can_have_dropout() -> None:
    spec = read_config(other_config("olmoe"), "small/olmoe")
    resolved = recipe_for(spec, method="lora", seq_len=64)
    assert resolved.assumptions == (
        "target_modules attention instead of all-linear: peft has no dropout for adapters of fused experts, which "
        "small/olmoe has",
    )
    attention = 2 * 16 * (64 + 64) + 2 * 16 * (64 + 32)  # q, o; k, v
    assert estimate_recipe(resolved).parameters.trainable == 2 * attention
    with pytest.raises(UserError, match="no dropout for adapters of fused experts"):
        refuse_impossible(ResolvedRecipe(spec, make_recipe(spec.name, target_modules="all-linear", lora_dropout=0.1)))


def test_a_mixture_whose_experts_peft_leaves_keeps_the_default() -> None:
    spec = read_config(other_config("gpt_oss"), "small/gpt_oss")
    resolved = recipe_for(spec, method="lora", attn_implementation="eager", seq_len=64)
    assert resolved.assumptions == ()
    attention = 2 * 16 * (64 + 64) + 2 * 16 * (64 + 32)
    assert estimate_recipe(resolved).parameters.trainable == 2 * attention


def test_the_closed_form_itself_is_refused_never_guessed() -> None:
    spec = read_config(other_config("helium"), "small/helium")
    with pytest.raises(UserError, match="model_type 'helium' has no closed form"):
        estimate_memory(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=64)))


def test_learned_positions_end_where_their_table_does() -> None:
    spec = read_config(other_config("opt"), "small/opt")
    refuse_impossible(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=512)))
    with pytest.raises(UserError, match="learned positions for 512 tokens"):
        refuse_impossible(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=513)))
    rotary = read_config(other_config("helium"), "small/helium")
    refuse_impossible(ResolvedRecipe(rotary, make_recipe(rotary.name, seq_len=513)))


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (
            other_config("mamba"),
            {"attn_implementation": "sdpa"},
            "attn_implementation sdpa: .* for model_type mamba: use another, such as --attn-implementation eager",
        ),
        (
            other_config("mamba"),
            {"attn_implementation": "eager"},
            "peft adapts no out_proj of a mamba, .*: use ",
        ),
        (other_config("helium"), {"target_modules": "c_attn"}, "no linear layer 'c_attn'"),
        (JETMOE, {"method": "full"}, "does not support .* checkpointing.*--no-gradient-checkpointing"),
        (JETMOE, {"method": "full", "gradient_checkpointing": False}, "depends on the values of tensors.*lorabench"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line(config: Any, options: Any, said: str) -> None:
    spec = read_config(config, "small")
    with pytest.raises(UserError, match=said) as refused:
        estimate_recipe(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=64, **options)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": "four"}, "transformers cannot build this helium"),
        ({"auto_map": {"AutoModel": "x.Y"}, "model_type": "olmo9"}, "its own code (auto_map) is never run"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_config(other_config("helium") | change, "folder/config.json")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
