"""Recipes: defaults, refusals, and round trips."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorabench.estimator.errors import UserError
from lorabench.estimator.losses.table import FUSED_LOSSES
from lorabench.estimator.methods.catalogue import METHODS, Method
from lorabench.estimator.recipes.recipe import (
    ALWAYS_IN_DIGEST,
    CHOICES,
    SETTINGS,
    Recipe,
    RecipeOptions,
    make_recipe,
    settings_of,
)

ADAPTED = {
    "rank": st.integers(1, 2**31 - 1),
    "lora_alpha": st.floats(1e-6, 1e6),
    "lora_dropout": st.floats(0, 0.999),
    "use_rslora": st.booleans(),
    "target_modules": st.sampled_from(["all-linear", "attention", "mlp", "q_proj", "v_proj, q_proj"]),
    "modules_to_save": st.sampled_from([None, "lm_head", "lm_head, embed_tokens"]),
    "adapter_dtype": st.sampled_from(CHOICES["adapter_dtype"]),
}
QUANTIZED = {
    "quant_type": st.sampled_from(CHOICES["quant_type"]),
    "double_quant": st.booleans(),
    "prepare_kbit": st.booleans(),
}
ANY = {
    "dtype": st.sampled_from(CHOICES["dtype"]),
    "mixed_precision": st.sampled_from(["no", "bf16"]),
    "optim": st.sampled_from(CHOICES["optim"]),
    "batch_size": st.integers(1, 2**31 - 1),
    "seq_len": st.integers(1, 2**31 - 1),
    "gradient_accumulation": st.integers(1, 2**31 - 1),
    "gradient_checkpointing": st.booleans(),
    "use_reentrant": st.booleans(),
    "attn_implementation": st.sampled_from(CHOICES["attn_implementation"]),
    "loss": st.sampled_from(CHOICES["loss"]),
    "keep_outputs": st.booleans(),
}


def options_of(method: Method) -> st.SearchStrategy[dict[str, Any]]:
    meant = {name: values for name, values in {**ADAPTED, **QUANTIZED}.items() if name in settings_of(method)}
    optional = {**ANY, **meant}
    drawn = st.fixed_dictionaries({"model": st.text(min_size=1), "method": st.just(method)}, optional=optional)
    return drawn.filter(
        lambda one: (
            (one.get("gradient_checkpointing", True) or not one.get("use_reentrant"))
            and not (one.get("keep_outputs") and one.get("loss") in FUSED_LOSSES)
        )
    )


recipes = st.sampled_from(list(METHODS)).flatmap(options_of).map(lambda options: make_recipe(**options))


@given(recipes)
@example(make_recipe("any", rank=2**31 - 1))
def test_a_recipe_survives_json_and_yaml(recipe: Recipe) -> None:
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe
    assert msgspec.convert(msgspec.to_builtins(recipe), Recipe) == recipe
    assert hash(msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe)) == hash(recipe)
    if recipe.model.isprintable():  # YAML has no other characters
        assert msgspec.yaml.decode(msgspec.yaml.encode(recipe), type=Recipe) == recipe


@given(recipes)
@example(make_recipe("any", lora_alpha=1_234_567.5, lora_dropout=0.012345678))
def test_what_people_read_of_a_recipe_is_all_of_it(recipe: Recipe) -> None:
    settings = recipe.settings()
    said: dict[str, Any] = {
        setting: value == "yes" if isinstance(settings[setting], bool) else type(settings[setting])(value)
        for setting, value in recipe.describe().items()
    }
    assert make_recipe(**said) == recipe


@given(recipes)
def test_saying_the_defaults_changes_nothing(recipe: Recipe) -> None:
    assert make_recipe(**recipe.settings()) == recipe


@given(recipes, recipes)
def test_equal_digests_are_equal_recipes_but_for_the_name(one: Recipe, other: Recipe) -> None:
    config = {"model_type": "llama", "hidden_size": 64}
    renamed = msgspec.structs.replace(other, model=one.model)
    assert (one.digest(config) == other.digest(config)) == (one == renamed)
    assert one.digest(config) != one.digest({**config, "hidden_size": 128})
    assert one.digest(config) == one.digest(dict(reversed(config.items())))


def test_a_digest_is_the_same_in_every_version() -> None:
    """Results folders are compared by it."""
    recipe = make_recipe("any", method="qlora", prepare_kbit=True, rank=8, seq_len=512)
    settings = (
        '{"model_config":{"hidden_size":64},"recipe":{"adapter_dtype":"float32","attn_implementation":"sdpa",'
        '"batch_size":1,"double_quant":true,"dtype":"bfloat16","gradient_accumulation":1,'
        '"gradient_checkpointing":true,"lora_alpha":16.0,"lora_dropout":0.05,"loss":"standard","method":"qlora",'
        '"mixed_precision":"bf16","optim":"adamw_torch_fused","prepare_kbit":true,"quant_type":"nf4","rank":8,'
        '"seq_len":512,"target_modules":"all-linear"}}'
    )
    import hashlib

    assert recipe.digest({"hidden_size": 64}) == hashlib.sha256(settings.encode()).hexdigest()[:12]


DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "float32", "rank": None, "lora_alpha": None, "target_modules": None, "quant_type": None},
    "lora": {"dtype": "bfloat16", "rank": 16, "lora_alpha": 32, "lora_dropout": 0.05, "adapter_dtype": "float32"},
    "qlora": {"dtype": "bfloat16", "rank": 16, "quant_type": "nf4", "double_quant": True, "prepare_kbit": False},
}


@pytest.mark.parametrize("method", DEFAULTS)
def test_what_is_left_out_takes_the_default_that_people_run(method: str) -> None:
    recipe = make_recipe("any", method=method)
    shared = {"mixed_precision": "bf16", "optim": "adamw_torch_fused", "batch_size": 1, "seq_len": 2048}
    expected = {**DEFAULTS[method], **shared, "gradient_checkpointing": True, "attn_implementation": "sdpa"}
    assert {name: recipe.settings().get(name) for name in expected} == expected
    assert recipe.settings().get("target_modules") == (None if method == "full" else "all-linear")


def test_type_checkers_know_every_setting_as_a_keyword() -> None:
    assert [*RecipeOptions.__annotations__] == [name for name in SETTINGS if name != "model"]


def test_a_setting_that_came_later_changes_no_digest_of_recipes_without_it() -> None:
    """Settings of the first recipes are in every digest; any other is None or off by default."""
    for method in CHOICES["method"]:
        stated = {*make_recipe("any", method=method).settings(), *ALWAYS_IN_DIGEST}
        assert stated <= FIRST_SETTINGS, method


FIRST_SETTINGS = {
    *("model", "method", "rank", "lora_alpha", "lora_dropout", "target_modules", "adapter_dtype", "dtype"),
    *("mixed_precision", "quant_type", "double_quant", "prepare_kbit", "optim", "batch_size", "seq_len"),
    *("gradient_accumulation", "gradient_checkpointing", "attn_implementation", "loss"),
}


def test_lora_is_the_default_and_alpha_is_twice_the_rank() -> None:
    recipe = make_recipe("any", rank=5)
    assert (recipe.method, recipe.settings()["lora_alpha"]) == ("lora", 10)


def test_module_names_are_put_in_order() -> None:
    recipe = make_recipe("any", target_modules=" v_proj,q_proj ,v_proj")
    assert recipe.settings()["target_modules"] == "q_proj,v_proj"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rnk": 8}, "unknown recipe option 'rnk': did you mean rank?"),
        ({"lora_r": 8}, "unknown recipe option 'lora_r': write rank"),
        ({"load_in_4bit": True}, "unknown recipe option 'load_in_4bit': write method=qlora"),
        ({"learning_rate": 1e-4}, "the learning rate is fixed"),
        ({"method": "qlroa"}, "unknown method 'qlroa': did you mean qlora?"),
        ({"method": "dora"}, "unknown method 'dora': DoRA is not among the methods"),
        ({"optim": "lomo"}, "unknown optim 'lomo': it updates each weight during backward, and lorabench counts all"),
        ({"optim": "adamw"}, "unknown optim 'adamw': did you mean adamw_torch_fused or adamw_torch or adamw_bnb_8bit"),
        ({"optim": "muon"}, "unknown optim 'muon': "),
        ({"dtype": "int8"}, "choose from bfloat16, float16, float32"),
        ({"rank": -1}, "rank must be a whole number from 1 to 2147483647, got -1"),
        ({"rank": 0}, "rank must be a whole number from 1 to 2147483647, got 0"),
        ({"rank": 2**31}, "rank must be"),
        ({"rank": 8.5}, ", got 8.5"),
        ({"rank": "8"}, ", got '8'"),
        ({"batch_size": True}, "batch_size must be a whole number from 1 to 2147483647, got True"),
        ({"lora_dropout": 1.0}, "lora_dropout must be a number of at least 0 and below 1, got 1.0"),
        ({"lora_alpha": 0.0}, "lora_alpha must be a number above 0 and at most 4294967294, got 0.0"),
        ({"lora_alpha": float("inf")}, ", got inf"),
        ({"seq_len": 0}, "seq_len must be"),
        ({"method": "full", "rank": 8}, "rank does not apply to method full"),
        ({"method": "full", "target_modules": "attention"}, "target_modules does not apply to method full"),
        ({"quant_type": "nf4"}, "quant_type does not apply to method lora: leave it out, or use method qlora"),
        ({"prepare_kbit": False}, "prepare_kbit does not apply to method lora"),
        ({"method": "qlora", "recast": True, "prepare_kbit": False}, "recast has no meaning without prepare_kbit"),
        ({"method": "qlora", "recast": True, "mixed_precision": "no"}, "recast needs mixed_precision bf16"),
        ({"target_modules": "q_proj,,v_proj"}, "names an empty module"),
        ({"target_modules": "mlp,q_proj"}, "mixes mlp with other names"),
        ({"method": "full", "dtype": "float16", "mixed_precision": "fp16"}, "use dtype float32"),
        ({"adapter_dtype": "float16", "mixed_precision": "fp16"}, "use adapter_dtype float32"),
        ({"modules_to_save": "lm_head", "dtype": "float16", "mixed_precision": "fp16"}, "use dtype float32"),
        (
            {"gradient_checkpointing": False, "use_reentrant": True},
            "use_reentrant has no meaning without gradient_checkpointing: leave it out",
        ),
        ({"keep_outputs": True, "loss": "liger"}, "keep_outputs has no meaning for loss liger"),
        ({"modules_to_save": "lm_head,"}, "names an empty module"),
        ({"method": "full", "modules_to_save": "lm_head"}, "modules_to_save does not apply to method full"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        make_recipe("any", **options)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "trained", "computed"),
    [
        ({"method": "full"}, "float32", "bfloat16"),
        ({"method": "full", "dtype": "bfloat16", "mixed_precision": "no"}, "bfloat16", "bfloat16"),
        ({"method": "full", "mixed_precision": "fp16"}, "float32", "float16"),
        ({"method": "lora", "mixed_precision": "no"}, "float32", "bfloat16"),
        ({"method": "qlora", "adapter_dtype": "bfloat16", "dtype": "float16"}, "bfloat16", "bfloat16"),
    ],
)
def test_dtypes_that_train_and_compute(options: dict[str, Any], trained: str, computed: str) -> None:
    recipe = make_recipe("any", **options)
    assert (recipe.trained_dtype, recipe.compute_dtype) == (trained, computed)
