"""Architectures that were recorded: their closed form meets the trace of the model that transformers builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from lorabench.estimator.closed_form.layout import Unsupported
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.errors import NoClosedForm, UserError
from lorabench.estimator.models.introspect import introspect
from lorabench.estimator.models.read_config import MODEL_TYPES, read_config
from lorabench.estimator.models.recordings import find_recording, recorded_types
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.feasibility import recipe_warnings, refuse_impossible
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import recorded_config, recorded_models
from tests.traced_tensors import traced_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

RECIPES: list[dict[str, Any]] = [
    {"method": "full", "batch_size": 2, "gradient_checkpointing": False},
    {"method": "lora", "batch_size": 2, "lora_dropout": 0.0},
    {"method": "qlora", "batch_size": 1, "lora_dropout": 0.0},
]


def test_no_family_is_both_recorded_and_written_by_hand() -> None:
    assert not set(recorded_types()) & set(MODEL_TYPES)


SAMPLE = 8
"""One of so many recordings is compared: `python -m lorabench.estimator.recording --check` compares all, in an hour."""


@pytest.mark.parametrize("name", recorded_models(with_closed_form=False)[::SAMPLE])
def test_a_recorded_model_has_the_tensors_that_transformers_makes(name: str) -> None:
    config = recorded_config(name)
    spec, built = read_config(config, "small"), introspect(config, "small")
    assert _tensors(spec) == _tensors(built)
    assert spec.parameters_by_part == built.parameters_by_part


def _tensors(spec: ModelSpec) -> list[Any]:
    layers = [(group.linears, group.weights) for group in spec.layers for _ in range(group.count)]
    return [spec.embeddings, layers, spec.final_norm, spec.head, spec.layers_path, spec.tie_word_embeddings]


ALWAYS = (
    "tiiuae/falcon-7b-instruct",  # linear layers that stay in 16 bits, and a mask for sdpa
    "tiiuae/falcon-40b-instruct",  # slices by lists of numbers
    "tiiuae/falcon-rw-1b",  # a mask of its own, and biases that are added apart
    "allenai/OLMo-1B-hf",  # a last layer of a kind of its own
    "facebook/opt-350m",  # linear layers outside the decoder layers
    "EleutherAI/gpt-neo-125m",  # buffers
    "mosaicml/mpt-7b-chat",  # the last positions of a table
)
"""Recordings that are compared always: no other one has what they have."""


NOT_COUNTED = {"gpt_bigcode": 2048 * 2048}
"""model type → bytes of a causal mask that the model has as a buffer outside its layers: the closed form counts buffers
of layers. The models of the tests have so few layers that it shows."""


@pytest.mark.parametrize("name", sorted({*recorded_models(with_closed_form=True)[::SAMPLE], *ALWAYS}))
def test_the_closed_form_of_a_recorded_model_meets_its_trace(name: str) -> None:
    spec = read_config(recorded_config(name), "small")
    recording = find_recording(spec.config)
    assert recording is not None
    assert recording.around is not None
    attentions = [name for name in ("sdpa", "eager") if name in recording.around]
    for number, options in enumerate(RECIPES):
        attention = attentions[number % len(attentions)]
        recipe = make_recipe(spec.name, seq_len=200, attn_implementation=attention, **options)
        resolved = ResolvedRecipe(spec, recipe)
        try:
            refuse_impossible(resolved)
            traced = traced_tensors(resolved)
        except UserError:  # transformers and peft cannot run it
            continue
        estimated = estimate_memory(resolved)
        known = NOT_COUNTED.get(spec.model_type, 0) - estimated.components["workspaces"]
        error = (estimated.peak_allocated_bytes + known) / (
            traced.peak_allocated_bytes - estimated.components["workspaces"]
        ) - 1
        assert abs(error) <= 0.01, (options, error)


EXPERTS = ("deepseek-ai/DeepSeek-Coder-V2-Lite-Base", "baidu/ERNIE-4.5-21B-A3B-PT", "tencent/Hunyuan-A13B-Instruct")


@pytest.mark.parametrize("name", EXPERTS)
def test_all_linear_trains_what_peft_trains_beside_experts(name: str) -> None:
    config = recorded_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=16, lora_dropout=0.0))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    recipe = make_recipe(name, seq_len=200, method="lora", lora_dropout=0.0)
    assert ResolvedRecipe(read_config(config, "small"), recipe).parameters.trainable == trained


def test_a_sequence_that_a_recording_does_not_hold_for_has_no_closed_form() -> None:
    spec = replace(read_config(recorded_config("HuggingFaceTB/SmolLM3-3B-Base"), "small"), longest_closed_form=256)
    estimate_memory(ResolvedRecipe(spec, make_recipe("small", seq_len=256, method="lora")))
    with pytest.raises(NoClosedForm, match="at most 256 tokens"):
        estimate_memory(ResolvedRecipe(spec, make_recipe("small", seq_len=257, method="lora")))


def test_what_a_program_cannot_say_has_no_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(*_: object) -> None:
        raise Unsupported("something")

    monkeypatch.setattr("lorabench.estimator.closed_form.programs.values.Values.flat", flat)
    spec = read_config(recorded_config("HuggingFaceTB/SmolLM3-3B-Base"), "unsupported")
    with pytest.raises(NoClosedForm, match=r"cannot say this recipe \(something\): use lorabench trace"):
        estimate_memory(ResolvedRecipe(spec, make_recipe("small", seq_len=64, method="lora")))


@pytest.mark.parametrize(
    ("name", "linears", "elements"),
    [
        (
            "tiiuae/falcon-7b-instruct",
            "query_key_value, dense, dense_h_to_4h, dense_4h_to_h",
            2 * 4544 * (9 * 4544 + 4672),
        ),
        ("allenai/OLMo-1B-hf", "down_proj", 2048 * 8192),
    ],
)
def test_qlora_says_which_linear_layers_stay_in_16_bits(name: str, linears: str, elements: int) -> None:
    spec = read_config(recorded_config(name), "small")
    [warning] = recipe_warnings(ResolvedRecipe(spec, make_recipe("small", seq_len=64, method="qlora")))
    assert warning == (
        f"qlora leaves {elements:,} of {spec.parameters:,} base weights in bfloat16: transformers 5 does not let "
        f"bitsandbytes replace {linears}"
    )
    assert not recipe_warnings(ResolvedRecipe(spec, make_recipe("small", seq_len=64, method="lora")))
