"""The upper end of reserved memory without a replay: memory with which replays run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lorabench
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.memory.allocator_settings import DEFAULTS
from lorabench.estimator.memory.reserved import reserve
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.quantities import MIB
from lorabench.estimator.recipes.defaults import recipe_for

KEEP_MORE: list[tuple[str, dict[str, Any]]] = [
    ("granite-3.3-2b-instruct", {"method": "lora", "seq_len": 512}),
    ("mistral-7b-v0.1", {"method": "lora", "batch_size": 2, "seq_len": 512}),
    ("qwen2.5-1.5b", {"method": "full", "batch_size": 2, "optim": "adamw_torch"}),
]
"""Recipes whose allocator keeps much if the device has it."""
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("llama-3.2-1b", {"method": "full"}),
    ("llama-3.2-1b", {"method": "full", "optim": "adamw_torch", "dtype": "bfloat16", "mixed_precision": "no"}),
    ("gemma-2b", {"method": "qlora", "batch_size": 2}),
    ("gemma-2b", {"method": "qlora", "batch_size": 2, "empty_cache_steps": 1}),
    ("gpt2", {"method": "full", "batch_size": 4, "seq_len": 512, "gradient_checkpointing": False}),
    ("qwen3-0.6b", {"method": "lora", "rank": 256, "gradient_accumulation": 2}),
]


@pytest.mark.parametrize(("model", "options"), KEEP_MORE + OTHERS)
@pytest.mark.parametrize("gpu", [("7.5", 40), ("8.0", 108), ("9.0", 132)], ids=["t4", "a100", "h100"])
def test_the_upper_end_is_memory_with_which_the_steps_run(
    model: str, options: dict[str, Any], gpu: tuple[str, int]
) -> None:
    resolved = recipe_for(find_model(model), **options)
    components = estimate_memory(resolved, "cuda", gpu[0]).components
    training = Training(resolved, *gpu)
    for settings in (DEFAULTS, DEFAULTS.expandable()):
        taken = reserve(components, compute_capability=gpu[0], expandable_segments=settings.expandable_segments)
        assert training.replay(settings, capacity=taken.reserved_range[1]).out_of_memory is None


@pytest.mark.parametrize(("model", "options"), KEEP_MORE[:1] + OTHERS)
def test_a_grid_has_a_bound_of_reserved_memory(model: str, options: dict[str, Any]) -> None:
    """P + 67 % · (P − W) + 64 MiB, as the page says."""
    options = {"batch_size": 1, "seq_len": 512} | options
    batches, lengths = [1, 3], [128, 500, 1024]
    settings = {name: value for name, value in options.items() if name not in ("batch_size", "seq_len")}
    peaks = lorabench.estimate_grid(model, *np.ix_(batches, lengths), gpu="a100-sxm-80gb", **settings)
    resolved = recipe_for(find_model(model), **options)
    weights = sum(estimate_memory(resolved).components[name] for name in ("weights", "quantized_weights", "adapters"))
    for row, batch_size in zip(peaks, batches, strict=True):
        for peak, seq_len in zip(row, lengths, strict=True):
            training = Training(resolved.replaced(batch_size=batch_size, seq_len=seq_len), "8.0", 108)
            bound = int(peak) + (int(peak) - weights) * 67 // 100 + 64 * MIB
            assert training.replay(capacity=bound).out_of_memory is None
