"""The bytes and kernels of an optimizer's step, against torch's own operations and against paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.optimizers.table import OPTIMIZERS, STEPS_ON_HOST
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.optimizer_steps import optimizer_step
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from tests.estimator.speed.test_passes import PassCounter
from tests.small_models import small_model

pytestmark = pytest.mark.filterwarnings("ignore")

CLIPPING = 3
"""Times that clipping reads or writes an element: for the norm, and to scale; by two kernels over lists."""


IN_PYTHON = ["sgd", *(name for name, optimizer in OPTIMIZERS.items() if optimizer.update.accesses is not None)]
"""Those whose steps are operations of torch; the others are kernels of their own."""


@pytest.mark.parametrize("optim", IN_PYTHON)
def test_a_step_takes_the_kernels_and_bytes_of_torch_s_operations(optim: str) -> None:
    """Adafactor has fewer for weights with one dimension."""
    spec = small_model("llama")
    recipe = make_recipe(spec.name, method="full", optim=optim)
    model = build_model(ResolvedRecipe(spec, recipe), "cpu", seed=0)
    optimizer: Any = make_optimizer(model, recipe)
    if OPTIMIZERS[optim].update.over == "lists":
        optimizer.param_groups[0]["foreach"] = True  # as they are on a GPU
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(OPTIMIZERS[optim].steady_step - 1):
        optimizer.step()
    with PassCounter() as counter:
        optimizer.step()
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    step = optimizer_step(ResolvedRecipe(spec, recipe))
    assert step.bytes - CLIPPING * weights == pytest.approx(counter.bytes, rel=0.01)
    counts_on_host = STEPS_ON_HOST in OPTIMIZERS[optim].states
    assert step.kernels - 2 == pytest.approx(counter.operations - counts_on_host, rel=0.12)


@pytest.mark.parametrize(
    ("optim", "moments", "bits"),
    [("adamw_torch_fused", 2, 32), ("adamw_8bit", 2, 8), ("lion_8bit", 1, 8), ("paged_lion_32bit", 1, 32)],
)
def test_fused_steps_read_gradients_and_read_and_write_the_rest_once(optim: str, moments: int, bits: int) -> None:
    """Of Llama-3.1-8B in float32; bitsandbytes keeps the states of embeddings in 32 bits."""
    recipe = make_recipe("meta-llama/Llama-3.1-8B", method="full", optim=optim)
    weights, embedding = 8_030_261_248, 128_256 * 4096
    state_bytes = (weights - embedding) + 4 * embedding if bits == 8 else 4 * weights
    step = optimizer_step(ResolvedRecipe(find_model(recipe.model), recipe))
    assert step.bytes == (CLIPPING + 1 + 2) * 4 * weights + 2 * moments * state_bytes


@pytest.mark.parametrize(("dtype", "mixed_precision", "accesses"), [("float32", "bf16", 9), ("bfloat16", "no", 11)])
def test_stable_adamw_reads_its_moments_twice_and_keeps_sums_in_16_bits(
    dtype: str, mixed_precision: str, accesses: int
) -> None:
    """Gradient 1, moments 2 + 2 and again 2, weight 2, and in 16 bits a Kahan sum 2: in three kernels a tensor."""
    recipe = make_recipe(
        "meta-llama/Llama-3.1-8B", method="full", optim="stable_adamw", dtype=dtype, mixed_precision=mixed_precision
    )
    weights, tensors = 8_030_261_248, 291
    step = optimizer_step(ResolvedRecipe(find_model(recipe.model), recipe))
    assert step.bytes == (CLIPPING + accesses) * {"float32": 4, "bfloat16": 2}[dtype] * weights
    assert (step.tensors, step.calls) == (tensors, 3 * tensors)
