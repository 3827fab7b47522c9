"""The methods' declarations against peft: tensors by name and shape, targets, scales; and IA3's closed form."""

from __future__ import annotations

import math
import random
from functools import cache
from statistics import median
from typing import Any

import pytest

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.memory_grid import estimate_memory_grid
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.methods.ia3 import DEFAULT_TARGETS, SCALED_INPUTS
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.adapter_file import adapter_state
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import CHOICES, Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.parameters import count_built
from tests.small_models import FAMILIES, small_model
from tests.traced_tensors import traced_tensors

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "lora", "rank": 4, "target_modules": "attention"},
        {"method": "lora", "rank": 4, "lora_dropout": 0.0},
        {"method": "lora", "use_rslora": True, "target_modules": "attention"},
        {"method": "ia3"},
        {"method": "ia3", "target_modules": "all-linear"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_declared_tensors_are_those_of_peft_by_name_and_shape(family: str, options: dict[str, Any]) -> None:
    from peft import get_peft_model_state_dict

    spec = small_model(family)
    recipe = recipe_for(spec, **options).recipe
    model: Any = build_model(ResolvedRecipe(spec, recipe), "meta")
    real = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    assert dict(adapter_state(ResolvedRecipe(spec, recipe))) == real
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert ResolvedRecipe(spec, recipe).parameters.trainable == trained
    assert count_built(model, spec) == ResolvedRecipe(spec, recipe).parameters


def test_ia3_adapts_and_scales_by_default_what_peft_does() -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS

    for family in FAMILIES:
        real = [name for name in TARGETS.get(family, []) if name != "w2"]  # of Mixtral before its experts were stacked
        assert list(DEFAULT_TARGETS.get(family, ())) == real, family
        assert {name for name in FEEDFORWARD.get(family, []) if name != "w2"} <= set(SCALED_INPUTS)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    spec = small_model("llama")
    for use_rslora, divisor in ((False, 16), (True, math.sqrt(16))):
        recipe = make_recipe(spec.name, rank=16, lora_alpha=8, use_rslora=use_rslora)
        model: Any = build_model(ResolvedRecipe(spec, recipe), "meta")
        layers = [module for module in model.modules() if hasattr(module, "lora_A")]
        assert {layer.scaling["default"] for layer in layers} == {8 / divisor}


def test_rslora_takes_no_memory_of_its_own() -> None:
    spec = small_model("llama")
    plain, stabilised = (make_recipe(spec.name, use_rslora=use_rslora) for use_rslora in (False, True))
    assert estimate_memory(ResolvedRecipe(spec, plain)) == estimate_memory(ResolvedRecipe(spec, stabilised))
    assert plain.digest(spec.config) != stabilised.digest(spec.config)


def test_a_method_without_a_rank_refuses_one() -> None:
    spec = small_model("llama")
    with pytest.raises(UserError, match="rank does not apply to method ia3: leave it out, or use method lora or qlora"):
        make_recipe(spec.name, method="ia3", rank=8)
    with pytest.raises(UserError, match="ranks do not apply to method ia3"):
        estimate_memory_grid(ResolvedRecipe(spec, make_recipe(spec.name, method="ia3")), [1], [128], [8])


def test_a_quantised_base_is_refused_where_no_method_has_it() -> None:
    with pytest.raises(UserError, match="quant_type does not apply to method ia3: leave it out, or use method qlora"):
        make_recipe("any", method="ia3", quant_type="nf4")


# IA3's forward pass


@cache
def sample() -> list[tuple[ModelSpec, Recipe]]:
    """Return recipes of IA3 that the real libraries can run, drawn anew where they cannot."""
    draw = random.Random(3)
    found: list[tuple[ModelSpec, Recipe]] = []
    while len(found) < 24:
        spec = small_model(draw.choice(list(FAMILIES)), hidden_size=draw.choice([128, 256]))
        try:
            recipe = make_recipe(
                spec.name,
                method="ia3",
                target_modules=draw.choice([None, "all-linear", "attention", "mlp"]),
                modules_to_save=draw.choice([None, None, "lm_head"]),
                adapter_dtype=draw.choice(CHOICES["adapter_dtype"]),
                dtype=draw.choice(CHOICES["dtype"]),
                mixed_precision=draw.choice(CHOICES["mixed_precision"]),
                batch_size=draw.choice([1, 2, 3]),
                seq_len=draw.choice([128, 511, 777, 1024]),
                gradient_accumulation=draw.choice([1, 2]),
                gradient_checkpointing=draw.random() < 0.5,
                attn_implementation=draw.choice(CHOICES["attn_implementation"]),
            )
            refuse_impossible(ResolvedRecipe(spec, recipe))
            estimate_memory(ResolvedRecipe(spec, recipe))
        except UserError:
            continue
        found.append((spec, recipe))
    return found


def test_the_closed_form_of_ia3_meets_the_trace() -> None:
    errors: dict[str, float] = {}
    for spec, recipe in sample():
        traced, estimated = (
            _tensor_bytes(memory)
            for memory in (traced_tensors(ResolvedRecipe(spec, recipe)), estimate_memory(ResolvedRecipe(spec, recipe)))
        )
        errors[f"{recipe.describe()} of {spec.config}"] = abs(estimated / traced - 1)
    assert median(errors.values()) <= 0.0005
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 0.01, (worst, errors[worst])


def _tensor_bytes(memory: Breakdown) -> int:
    """Return the peak without cuBLAS' workspaces: beside small models they would hide an error."""
    return memory.peak_allocated_bytes - memory.components["workspaces"]
