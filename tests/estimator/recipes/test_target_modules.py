"""Names of target modules reach the layers that peft adapts, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.adapter_file import adapter_state
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import recipe_warnings, refuse_impossible

USUAL = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
SHAPES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {**SHAPES, "model_type": "mixtral", "intermediate_size": 24, "vocab_size": 32, "num_local_experts": 4},
    "qwen3_moe": {
        **SHAPES,
        "model_type": "qwen3_moe",
        "intermediate_size": 24,
        "moe_intermediate_size": 8,
        "vocab_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}
SHARED: dict[str, Any] = {
    **SHAPES,
    "model_type": "ernie4_5_moe",
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "vocab_size": 32,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 0,
    "moe_layer_end_index": 0,
}


def _adapted(model_type: str, names: str) -> dict[str, tuple[int, ...]]:
    spec = read_config(MIXTURES[model_type], "small")
    resolved = recipe_for(spec, target_modules=names, rank=2, lora_dropout=0.0)
    return dict(adapter_state(resolved))


@pytest.mark.versions
@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("qwen3_moe", USUAL),
        ("qwen3_moe", "q_proj,w1,w2,w3"),
        ("qwen3_moe", "q_proj,gate"),
        ("qwen3_moe", "q_proj,down_proj"),
        ("mixtral", "q_proj,v_proj,w1,w2,w3"),
        ("mixtral", USUAL),
        ("mixtral", "gate,o_proj"),
    ],
)
def test_experts_get_the_adapters_that_peft_gives_them(model_type: str, names: str) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MIXTURES[model_type]))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names.split(",")))
    real = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    assert _adapted(model_type, names) == real


@pytest.mark.versions
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_of_a_shared_expert_all_linear_adapts_what_peft_does(method: str) -> None:
    from peft import IA3Config, LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHARED))
    configs = {
        "lora": LoraConfig(r=2, target_modules="all-linear"),
        "ia3": IA3Config(target_modules="all-linear", feedforward_modules=[]),
    }
    adapted = get_peft_model(model, configs[method])
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    resolved = recipe_for(read_config(SHARED, "small"), method=method, target_modules="all-linear")
    linears = {linear.name for linear in resolved.spec.layers[0].linears}
    real = {linear for linear in linears if any(f".0.{linear}." in name for name in trained)}
    assert set(resolved.target_modules) == real
    assert ("mlp.shared_experts.up_proj" in real) == (method == "ia3")


def test_half_of_a_fused_projection_is_refused() -> None:
    spec = read_config(MIXTURES["qwen3_moe"], "small")
    with pytest.raises(UserError, match=r"gate_proj and up_proj .* use --target-modules with up_proj too"):
        refuse_impossible(recipe_for(spec, target_modules="q_proj,gate_proj", lora_dropout=0.0))


def test_dropout_before_adapters_of_named_experts_is_refused() -> None:
    spec = read_config(MIXTURES["qwen3_moe"], "small")
    with pytest.raises(UserError, match="no dropout for adapters of fused experts"):
        refuse_impossible(recipe_for(spec, target_modules=USUAL, lora_dropout=0.1))


@pytest.mark.parametrize("model", ["microsoft/Phi-3-mini-4k-instruct", "zai-org/GLM-4-32B-0414"])
def test_names_that_match_only_partly_adapt_what_they_match_with_a_warning(model: str) -> None:
    resolved = recipe_for(find_model(model), target_modules=USUAL)
    last = {name.rpartition(".")[2] for name in resolved.target_modules}
    assert {"o_proj", "down_proj"} <= last <= set(USUAL.split(","))
    assert any("has no linear layer gate_proj" in each for each in recipe_warnings(resolved))


def test_names_of_which_none_matches_are_refused() -> None:
    with pytest.raises(UserError, match="has no linear layer 'c_attn'"):
        _ = recipe_for(find_model("meta-llama/Llama-3.1-8B"), target_modules="c_attn,c_proj").target_modules


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (r".*\.(q|v)_proj", {"self_attn.q_proj", "self_attn.v_proj"}),
        (r"model\.layers\.[\d]+\.mlp\..*", {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        (r"model.language_model.layers.[\d]+.self_attn.k_proj", {"self_attn.k_proj"}),
    ],
)
def test_a_regular_expression_matches_whole_paths(pattern: str, names: set[str]) -> None:
    resolved = recipe_for(find_model("meta-llama/Llama-3.1-8B"), target_modules=pattern)
    assert set(resolved.target_modules) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(q|v)_proj", "no path of a linear layer of .* matches .*: paths are such as model.layers.0"),
        (r".*\.1\.self_attn\.q_proj", "in some layers only"),
        (r"(q", "is no regular expression"),
    ],
)
def test_a_regular_expression_that_cannot_be_counted_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = recipe_for(find_model("meta-llama/Llama-3.1-8B"), target_modules=pattern).target_modules


def test_the_word_of_another_tool_for_all_layers_is_explained() -> None:
    with pytest.raises(UserError, match="all is another tool's word: write all-linear"):
        _ = recipe_for(find_model("meta-llama/Llama-3.1-8B"), target_modules="all").target_modules
