"""The bytes that a step passes over, against torch's own operations of a real step."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.extents import fill_recipe
from lorabench.estimator.speed.operations import Kernel, micro_batch_operations
from lorabench.estimator.training.model import build_model
from tests.small_models import small_model

pytestmark = pytest.mark.filterwarnings("ignore")

NO_PASSES = ("mm", "bmm", "addmm", "_scaled_dot", "empty", "new_empty", "zeros", "_unsafe_view", "_local_scalar")
"""Products and attention, which have bytes of their own; and what only makes tensors, views of them, or numbers."""


class PassCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts elementwise operations, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [one.alias_info for one in func._schema.returns if one.alias_info is not None]
        is_view = any(not alias.is_write for alias in aliases)
        if not is_view and not func._schema.name.removeprefix("aten::").startswith(NO_PASSES):
            # What operations on lists write is not returned.
            arguments = func._schema.arguments
            written = [one for said, one in zip(arguments, args, strict=False) if said.is_write and result is None]
            leaves = tree_leaves((args, kwargs, result, written))
            tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
            self.operations += bool(tensors)
            self.bytes += sum(one.numel() * one.element_size() for one in tensors)
        return result


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"method": "full", "gradient_checkpointing": False, "dtype": "bfloat16", "mixed_precision": "no"}),
        ("llama", {"method": "full", "gradient_checkpointing": False}),
        ("llama", {"method": "full", "gradient_checkpointing": True}),
        ("llama", {"method": "lora", "gradient_checkpointing": False, "lora_dropout": 0.0}),
        ("llama", {"method": "lora", "gradient_checkpointing": True, "lora_dropout": 0.0}),
        ("phi3", {"method": "lora", "gradient_checkpointing": True, "lora_dropout": 0.0}),
        ("granite", {"method": "full", "gradient_checkpointing": True}),
    ],
)
def test_a_step_passes_over_the_bytes_that_torch_s_operations_do(family: str, settings: dict[str, Any]) -> None:
    """Without dropout, which is one kernel on a GPU and several operations on a CPU."""
    spec = small_model(family)
    recipe = make_recipe(spec.name, batch_size=2, seq_len=128, **settings)
    model = build_model(ResolvedRecipe(spec, recipe), "cpu", seed=0).train()
    tokens = torch.randint(0, spec.vocab_size, (recipe.batch_size, recipe.seq_len))
    with PassCounter() as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.mixed_precision == "bf16"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
    filled = fill_recipe(ResolvedRecipe(spec, recipe))
    operations = micro_batch_operations(ResolvedRecipe(spec, recipe), "cpu").operations
    counted = sum(times * filled.sum(operation.traffic) for operation, times in operations)
    assert counted == pytest.approx(counter.bytes, rel=0.07)


def test_every_kind_of_kernel_is_run_by_some_step() -> None:
    """Kernels go by the names that operations have on the tape: another name would make one plain arithmetic."""
    run = set()
    for family in ("llama", "gpt2"):
        recipe = make_recipe(family, method="full", attn_implementation="eager")
        run |= {
            operation.kernel
            for operation, _ in micro_batch_operations(ResolvedRecipe(small_model(family), recipe)).operations
        }
    assert run == set(get_args(Kernel))
