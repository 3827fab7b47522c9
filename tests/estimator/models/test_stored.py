"""Quantised checkpoints train with adapters on the 4-bit weights that they store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lorabench
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.defaults import recipe_for
from tests.small_models import small_config

BITSANDBYTES = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}


def _recipe(quantization: dict[str, Any], **options: Any) -> Any:
    spec = read_config({**small_config("llama"), "quantization_config": quantization}, "stored")
    return recipe_for(spec, **options)


def test_a_checkpoint_of_bitsandbytes_is_qlora_in_its_own_format() -> None:
    stored = _recipe(BITSANDBYTES)
    plain = recipe_for(read_config(small_config("llama"), "stored"), method="qlora")
    assert stored.recipe == plain.recipe
    assert stored.digest == plain.digest


def test_its_data_type_and_constants_are_those_of_the_file() -> None:
    single = {**BITSANDBYTES, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
    settings = _recipe(single).recipe.settings()
    assert (settings["quant_type"], settings["double_quant"]) == ("fp4", False)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_another_4_bit_format_is_counted_as_that_of_bitsandbytes_and_says_so(method: str) -> None:
    resolved = _recipe({"quant_method": method, "bits": 4, "group_size": 128})
    assert resolved.recipe.method == "qlora"
    assert any(f"4 bits by {method.upper()}, and are counted as" in each for each in resolved.assumptions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "full"}, "method full: the weights of stored are stored in 4 bits by bitsandbytes .*: use qlora"),
        ({"quant_type": "fp4"}, "quant_type fp4: .*use nf4"),
    ],
)
def test_options_that_contradict_the_checkpoint_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _recipe(BITSANDBYTES, **options)


def test_an_unknown_format_is_refused_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"stored as aqlm, .* name the model that it was quantised from"):
        _recipe({"quant_method": "aqlm", "bits": 2})


def test_a_config_may_have_numbers_that_are_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**small_config("llama"), "time_step_limit": [0.0, float("inf")]}), encoding="utf-8")
    assert find_model(file).model_type == "llama"
    assert lorabench.estimate(file, replay=False).recipe.method == "lora"


def test_a_word_that_is_no_number_is_still_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": Infinite}', encoding="utf-8")
    with pytest.raises(UserError, match="not JSON"):
        find_model(file)
