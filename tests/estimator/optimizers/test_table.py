"""The table of optimizers: what its rows say of each other, and that it is asked for every name."""

from __future__ import annotations

import re
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.optimizers import optimizer_bytes
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.optimizers.table import DEFAULT_OPTIMIZER, LEFT_OUT, OPTIMIZERS
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import CHOICES, make_recipe

TENSORS = [TrainedTensors((1024, 1024), 2, "float32")]


def test_a_recipe_takes_the_names_of_the_table_and_no_other() -> None:
    assert CHOICES["optim"] == tuple(OPTIMIZERS)
    assert make_recipe("small").optim == DEFAULT_OPTIMIZER
    with pytest.raises(KeyError, match="adam_of_old"):
        optimizer_bytes("adam_of_old", TENSORS, "cuda")


def test_every_optimizer_of_transformers_has_a_row_or_a_reason() -> None:
    from transformers.training_args import OptimizerNames

    assert {one.value for one in OptimizerNames} <= {*OPTIMIZERS, *LEFT_OUT}


def test_the_extra_has_every_package_that_training_itself_does_not_take() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        extra: {re.split("[<>=]", requirement)[0] for requirement in project["optional-dependencies"][extra]}
        for extra in ("bench", "optimizers")
    }
    packages = {optimizer.library.package for optimizer in OPTIMIZERS.values()}
    assert extras["optimizers"] == packages - extras["bench"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_smaller_one_of_its_kind_is_the_smallest_that_does_the_same(name: str) -> None:
    smaller = OPTIMIZERS[name].smaller
    if smaller is None:
        return
    assert OPTIMIZERS[smaller].name == OPTIMIZERS[name].name
    assert OPTIMIZERS[smaller].smaller is None
    kept, less = (optimizer_bytes(one, TENSORS, "cuda") for one in (name, smaller))
    assert (less.states + less.paged, less.states) < (kept.states + kept.paged, kept.states)


@pytest.mark.parametrize("name", [name for name, optimizer in OPTIMIZERS.items() if optimizer.unpaged])
def test_what_pages_names_the_same_without_pages(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    assert optimizer.unpaged is not None
    instead = OPTIMIZERS[optimizer.unpaged]
    assert optimizer.paged
    assert not instead.paged
    assert instead.name == optimizer.name


def test_nothing_pages_that_has_no_stand_in_on_a_cpu() -> None:
    assert all(optimizer.unpaged for optimizer in OPTIMIZERS.values() if optimizer.paged)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_refused_with_a_reason_and_an_optimizer_that_is_here(name: str) -> None:
    assert name not in OPTIMIZERS
    reason, _, instead = LEFT_OUT[name].rpartition(": use ")
    assert reason
    assert instead in OPTIMIZERS
    with pytest.raises(UserError, match=f"unknown optim '{name}': ") as refusal:
        make_recipe("small", optim=name)
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("optim", "options", "refused"),
    [
        ("rmsprop_bnb", {"adapter_dtype": "float32"}, False),
        ("rmsprop_bnb", {"adapter_dtype": "bfloat16"}, True),
        # A of 16 × 2048 elements is in 8 bits, B of 512 × 16 too; norms of 2048 elements are not.
        ("rmsprop_bnb_8bit", {"adapter_dtype": "bfloat16", "rank": 16}, False),
        ("rmsprop_bnb_8bit", {"method": "full", "dtype": "bfloat16", "mixed_precision": "no"}, True),
        ("adamw_bnb_8bit", {"method": "full", "dtype": "bfloat16", "mixed_precision": "no"}, False),
    ],
)
def test_bfloat16_gradients_of_32_bit_rmsprop_are_refused(optim: str, options: dict[str, Any], refused: bool) -> None:
    resolved = recipe_for(find_model("llama-3.2-1b"), optim=optim, **options)
    refusal: Any = pytest.raises(UserError, match="no kernel for 32-bit states of bfloat16")
    with refusal if refused else nullcontext():
        refuse_impossible(resolved)
