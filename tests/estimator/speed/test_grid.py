"""Grids of throughput against the throughput of each recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lorabench.estimator.devices.device import find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.grid import estimate_throughput_grid
from lorabench.estimator.speed.throughput import estimate_throughput
from tests.estimator.speed.test_calibrations import made_up

GPUS = ("rtx-4090", "a100-sxm-80gb", "mi300x", "t4")
UNEVEN = made_up(
    matmuls={
        dtype: replace(times, seconds=tuple((1 + place % 5) * second for place, second in enumerate(times.seconds)))
        for dtype, times in made_up().matmuls.items()
    }
)
RECIPES: list[tuple[str, dict[str, Any]]] = [
    ("meta-llama/Llama-3.1-8B", {}),
    ("meta-llama/Llama-3.1-8B", {"method": "qlora", "optim": "paged_adamw_8bit", "loss": "liger"}),
    ("meta-llama/Llama-3.1-8B", {"method": "full", "gradient_accumulation": 3, "optim": "paged_adamw_32bit"}),
    ("mistralai/Mistral-7B-v0.1", {"gradient_checkpointing": False, "optim": "adafactor"}),
    ("google/gemma-2-9b", {"attn_implementation": "eager"}),
    ("mistralai/Mixtral-8x7B-v0.1", {"target_modules": "attention", "mixed_precision": "fp16", "dtype": "float16"}),
    ("gpt2", {"dtype": "float32", "mixed_precision": "no"}),
]


@settings(max_examples=5)
@given(sizes=st.lists(st.tuples(*[st.integers(1, most) for most in (64, 9000, 600)]), min_size=1, max_size=4))
@pytest.mark.parametrize("calibration", [None, UNEVEN], ids=["datasheet", "calibrated"])
@pytest.mark.parametrize(("model", "options"), RECIPES, ids=lambda value: str(value))
def test_each_of_a_grid_is_as_estimated_alone(
    model: str, options: dict[str, Any], calibration: Any, sizes: list[tuple[int, int, int]]
) -> None:
    if calibration is not None and "mixed_precision" in options:
        options = options | {"mixed_precision": "bf16", "dtype": "bfloat16"}
    spec, recipe = find_model(model), make_recipe(model, **options)
    batch_sizes, seq_lens, ranks = zip(*sizes, strict=True)
    for device in map(find_device, GPUS if calibration is None else ["rtx-4090"]):
        grid = estimate_throughput_grid(
            ResolvedRecipe(spec, recipe), device, batch_sizes, seq_lens, ranks if recipe.rank else None, calibration
        )
        assert grid is not None
        for place, (batch_size, seq_len, rank) in enumerate(sizes):
            sized = replace(recipe.with_rank(rank), batch_size=batch_size, seq_len=seq_len)
            speed = estimate_throughput(ResolvedRecipe(spec, sized), device, calibration)
            assert speed is not None
            for name in ("step_seconds", "tokens_per_second"):
                bounds = getattr(grid, f"{name}_range")
                found = [getattr(grid, name)[place], *(bound[place] for bound in bounds)]
                alone = [getattr(speed, name), *getattr(speed, f"{name}_range")]
                assert found == pytest.approx(alone, rel=1e-12, abs=0)


def test_a_grid_has_the_shape_that_its_sizes_broadcast_to() -> None:
    spec, recipe = find_model("meta-llama/Llama-3.1-8B"), make_recipe("meta-llama/Llama-3.1-8B")
    device = find_device("rtx-4090")
    batch_sizes, seq_lens, ranks = np.ix_([1, 2], [512, 1024, 4096], [8, 64])
    grid = estimate_throughput_grid(ResolvedRecipe(spec, recipe), device, batch_sizes, seq_lens, ranks)
    assert grid is not None
    assert grid.tokens_per_second.shape == (2, 3, 2)
    alone = estimate_throughput(ResolvedRecipe(spec, replace(recipe.with_rank(8), batch_size=2, seq_len=4096)), device)
    assert alone is not None
    assert grid.tokens_per_second[1, 2, 0] == pytest.approx(alone.tokens_per_second, rel=1e-12)


def test_of_a_size_alone_no_grid_of_speeds_is_known() -> None:
    spec, recipe = find_model("meta-llama/Llama-3.1-8B"), make_recipe("meta-llama/Llama-3.1-8B")
    assert estimate_throughput_grid(ResolvedRecipe(spec, recipe), find_device("24GB"), [1, 2], 512) is None
    with pytest.raises(UserError, match="do not broadcast"):
        estimate_throughput_grid(ResolvedRecipe(spec, recipe), find_device("rtx-4090"), [1, 2], [1, 2, 3])
