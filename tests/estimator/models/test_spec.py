from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import MODEL_TYPES, read_config
from tests.built_models import TOKEN_IDS, build, built_shapes, count_by_part, listed_shapes

quick = settings(max_examples=12)

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
SMALLEST = {
    model_type: GPT2 if model_type == "gpt2" else {**LLAMA, "model_type": model_type} for model_type in MODEL_TYPES
}
for _grouped in ("mistral", "mixtral", "gemma", "qwen2", "qwen3"):
    SMALLEST[_grouped]["num_key_value_heads"] = 2
"""model_type → the keys that a config cannot do without (and key heads that divide the heads)."""


@st.composite
def decoder_shapes(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    key_heads = draw(st.integers(1, 3))
    heads = key_heads * draw(st.integers(1, 3))
    config: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": draw(st.integers(1, 300)),
        "hidden_size": heads * 2 * draw(st.integers(1, 6)),
        "intermediate_size": draw(st.integers(1, 100)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": None,
    }
    if model_type != "gpt_neox":
        config["num_key_value_heads"] = key_heads
        config["head_dim"] = 2 * draw(st.integers(1, 8))
    else:
        config["rotary_pct"] = 1.0
    if model_type in ("llama", "granite", "gemma", "gemma2", "qwen3", "qwen3_moe", "gpt_neox"):
        config["attention_bias"] = draw(st.booleans())
    if model_type in ("llama", "granite"):
        config["mlp_bias"] = draw(st.booleans())
    if model_type == "mixtral":
        config |= {"num_local_experts": draw(st.integers(2, 5)), "num_experts_per_tok": draw(st.integers(1, 2))}
    if model_type == "qwen3_moe":
        config |= {
            "num_experts": draw(st.integers(2, 5)),
            "num_experts_per_tok": 2,
            "moe_intermediate_size": draw(st.integers(1, 50)),
            "decoder_sparse_step": draw(st.integers(1, 3)),
            "mlp_only_layers": draw(st.lists(st.integers(0, 4), max_size=3)),
        }
    return config


@st.composite
def gpt2_shapes(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 6))
    return {
        "model_type": "gpt2",
        "vocab_size": draw(st.integers(1, 300)),
        "n_embd": heads * draw(st.integers(1, 12)),
        "n_layer": draw(st.integers(1, 4)),
        "n_head": heads,
        "n_inner": draw(st.none() | st.integers(1, 100)),
        "n_positions": draw(st.integers(1, 100)),
        "tie_word_embeddings": draw(st.booleans()),
    }


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@quick
@given(data=st.data())
def test_any_shapes_are_those_that_transformers_makes(model_type: str, data: st.DataObject) -> None:
    config = data.draw(gpt2_shapes() if model_type == "gpt2" else decoder_shapes(model_type))
    spec = read_config(config, "drawn")
    shapes = built_shapes(config)
    assert listed_shapes(spec) == shapes
    assert spec.parameters_by_part == count_by_part(shapes)
    assert spec.parameters == sum(math.prod(shape) for shape in shapes.values())
    assert spec.config == read_config(spec.config, "again").config


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_keys_left_out_take_the_defaults_of_transformers(model_type: str) -> None:
    from transformers import AutoConfig

    mine = read_config(SMALLEST[model_type], "smallest").config
    theirs = AutoConfig.for_model(**SMALLEST[model_type]).to_dict()
    rebuilt = AutoConfig.for_model(**mine).to_dict()
    differing = {key for key in theirs if theirs[key] != rebuilt[key]} - set(TOKEN_IDS)
    assert differing <= ({"n_inner"} if model_type == "gpt2" else {"head_dim"})
    assert built_shapes(SMALLEST[model_type] | {"pad_token_id": None}) == built_shapes(mine)


@pytest.mark.parametrize(
    ("model_type", "older"),
    [
        ("llama", {"rope_theta": 5e5}),
        ("llama", {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        (
            "llama",
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
        ),
        ("mixtral", {}),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 1234}),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}),
    ],
)
def test_both_spellings_of_the_rotary_settings_mean_what_they_mean_to_transformers(
    model_type: str, older: dict[str, Any]
) -> None:
    from transformers import AutoConfig

    raw = {**SMALLEST[model_type], **older}
    theirs = AutoConfig.for_model(**json.loads(json.dumps(raw))).rope_parameters
    mine = AutoConfig.for_model(**read_config(raw, "older").config).rope_parameters
    theirs.pop("type", None)
    assert mine == theirs


def test_the_first_name_of_longrope_is_still_read() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    older = read_config({**SMALLEST["phi3"], "rope_scaling": {"type": "su", **factors}}, "phi3")
    assert older == read_config({**SMALLEST["phi3"], "rope_scaling": {"type": "longrope", **factors}}, "phi3")


def test_sliding_layers_are_those_of_transformers() -> None:
    from transformers import AutoConfig

    for raw in (
        {**SMALLEST["gemma2"], "num_hidden_layers": 5},
        {**SMALLEST["qwen2"], "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        {**SMALLEST["qwen3"], "use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1},
    ):
        config = read_config(raw, "sliding").config
        theirs = AutoConfig.for_model(**raw)
        assert (config["layer_types"], config["sliding_window"]) == (theirs.layer_types, theirs.sliding_window)


def test_experts_and_routers_are_no_linear_layers() -> None:
    spec = read_config({**SMALLEST["mixtral"], "num_local_experts": 4}, "experts")
    assert [linear.name for linear in spec.layers[0].linears] == [
        f"self_attn.{projection}_proj" for projection in ("q", "k", "v", "o")
    ]
    import torch

    model = build(spec.config)
    assert not any(isinstance(module, torch.nn.Linear) for module in model.model.layers[0].mlp.modules())


def test_linear_parameters_are_what_can_be_quantised() -> None:
    import torch

    spec = read_config({**LLAMA, "attention_bias": True}, "biased")
    layers = build(spec.config).model.layers
    quantised = sum(module.weight.numel() for module in layers.modules() if isinstance(module, torch.nn.Linear))
    assert spec.linear_parameters == quantised


def test_other_names_of_the_same_size_are_taken() -> None:
    renamed = {
        "model_type": "gpt2",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    assert read_config(renamed, "gpt2") == read_config(GPT2, "gpt2")
    mixtral = SMALLEST["mixtral"]
    assert read_config({**mixtral, "num_experts": 3}, "m") == read_config({**mixtral, "num_local_experts": 3}, "m")


def test_keys_that_decide_neither_shapes_nor_steps_make_no_difference() -> None:
    noise = {
        "_name_or_path": "/somewhere",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
        "use_cache": False,
        "eos_token_id": [1, 2],
        "auto_map": {"AutoConfig": "configuration_x.X"},
    }
    assert read_config({**LLAMA, **noise}, "llama") == read_config(LLAMA, "llama")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": "bert"}, "this bert attends to later tokens"),
        ({"model_type": "lama"}, "no causal language model of model_type 'lama': correct it (did you mean llama?)"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "x.X"}}, "its own code (auto_map) is never run"),
        ({"model_type": ["llama"]}, "model_type must be a name such as llama, not ['llama']"),
        ({"is_encoder_decoder": True}, "an encoder-decoder, not a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "'LlamaForSequenceClassification', not a causal"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
        ({"quantization_config": {"quant_method": "gptq"}}, "its weights are stored as gptq"),
        ({"use_bidirectional_attention": True}, "not a causal language model"),
        ({"per_layer_config": {"0": {}}}, "per_layer_config"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number from 1 to 16777216, got '32'"),
        ({"hidden_size": 32.0}, ", got 32.0"),
        ({"hidden_size": 0}, "hidden_size must be a whole number from 1 to 16777216, got 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a whole number from 1 to 1024, got -1"),
        ({"vocab_size": 2**40}, "vocab_size must be a whole number from 1 to 16777216, got 1099511627776"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be"),
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        (
            {"hidden_act": "silly"},
            "hidden_act must be one of gelu, gelu_fast, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, silu, swish, got"
            " 'silly'",
        ),
        ({"attention_dropout": 1.5}, "attention_dropout must be a number of at least 0 and below 1, got 1.5"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_type 'mrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type linear needs factor"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_parameters.rope_theta must be a number above 0, got -1.0"),
        ({"partial_rotary_factor": 0.5}, "models of this type rotate the whole head"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ({"model_type": "mixtral", "num_key_value_heads": 2, "num_experts_per_tok": 9}, "num_experts_per_tok 9"),
        ({"model_type": "gpt_neox", "rotary_pct": 1.5}, "partial_rotary_factor 1.5 is above 1"),
        ({"model_type": "gpt_neox", "hidden_size": 36, "rotary_pct": 1.0}, "head_dim 9 is odd"),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}},
            "phi3 models have default or longrope",
        ),
    ],
)
def test_a_config_that_is_no_possible_causal_model_is_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    config = {key: value for key, value in {**LLAMA, **change}.items() if value is not ...}
    with pytest.raises(UserError) as refused:
        read_config(config, "folder/config.json")
    assert said in str(refused.value)
    assert str(refused.value).startswith("folder/config.json: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"add_cross_attention": True}, "not a causal language model"),
        ({"reorder_and_upcast_attn": True}, "no closed form"),
        ({"n_head": 5}, "n_embd 32 is not a multiple of n_head 5"),
    ],
)
def test_a_gpt2_that_is_computed_otherwise_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_config({**GPT2, **change}, "gpt2")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.integers(0, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
rotary_keys = ["rope_type", "type", "rope_theta", "factor", "short_factor", "long_factor", "partial_rotary_factor"]
rotary_kinds = st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "su"])
rotary_values = st.dictionaries(st.sampled_from(rotary_keys), json_values | rotary_kinds, max_size=4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@settings(max_examples=40)
@given(data=st.data())
def test_a_config_is_refused_with_a_user_error_or_transformers_builds_it_too(
    model_type: str, data: st.DataObject
) -> None:
    known = sorted(read_config(SMALLEST[model_type], "smallest").config)
    keys = st.sampled_from(
        [*known, "rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_pct", "architectures"]
    )
    changes = data.draw(st.dictionaries(keys, json_values, max_size=2))
    for key in ("rope_scaling", "rope_parameters"):
        if data.draw(st.integers(0, 3)) == 0:
            changes[key] = data.draw(rotary_values)
    with contextlib.suppress(UserError):
        spec = read_config({**SMALLEST[model_type], **changes}, "fuzzed")
        if spec.num_hidden_layers < 10:
            assert listed_shapes(spec) == built_shapes(spec.config)


@pytest.mark.parametrize("value", [None, 3, "text", [LLAMA]])
def test_a_config_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="a model config is a JSON object"):
        read_config(value, "odd")


def test_reading_a_config_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from lorabench.estimator.models.catalogue import find_model; find_model('Llama-3.1-8B');"
        "print([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
