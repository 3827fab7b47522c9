"""The scratch of an embedding that trains, and the rows of shifted losses, are counted as the trace sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.memory.embedding_backward import embedding_scratch
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import trace
from tests.small_models import small_model
from tests.traced_tensors import traced_tensors


def test_many_tokens_are_sorted_and_summed_in_parts() -> None:
    assert embedding_scratch(3072, 1000) == ((0,) * 6, 0)
    assert embedding_scratch(4000, 1000) == ((4000, 4000, 4000, 1000, 1000, 1400), 1400)
    assert embedding_scratch(4000, 50_000) == ((4000, 4000, 4000, 4000, 4000, 4400), 4400)
    sizes, parts = embedding_scratch(np.array([3072.0, 4000.0]), 1000)
    assert [size.tolist() for size in sizes] == [[0, of] for of in (4000, 4000, 4000, 1000, 1000, 1400)]
    assert parts.tolist() == [0, 1400]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "batch_size": 12, "seq_len": 256},  # 3072 tokens
        {"method": "full", "batch_size": 13, "seq_len": 256},
        {"method": "full", "batch_size": 64, "seq_len": 128, "mixed_precision": "no"},
        {"batch_size": 5, "seq_len": 16, "loss": "legacy"},
        {"batch_size": 1, "seq_len": 64, "loss": "legacy"},
        {"batch_size": 5, "seq_len": 16},
        {"batch_size": 1, "seq_len": 64},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.parametrize("vocab_size", [1000, 5000])
def test_each_phase_is_the_trace_s_but_for_its_smallest_tensors(options: dict[str, Any], vocab_size: int) -> None:
    spec = small_model("llama", vocab_size=vocab_size)
    recipe = make_recipe(spec.name, **options)
    estimated, traced = estimate_memory(ResolvedRecipe(spec, recipe)), traced_tensors(ResolvedRecipe(spec, recipe))
    # Position ids, a padding label for each sequence, rotary frequencies and scalars.
    left_out = 8 * recipe.seq_len + 8 * recipe.batch_size + 512
    for phase, peak in traced.phase_peaks_bytes.items():
        assert 0 <= peak - estimated.phase_peaks_bytes[phase] <= left_out, phase


@pytest.mark.filterwarnings("ignore")
def test_it_is_counted_where_it_decides() -> None:
    """A large vocabulary without logits: the embedding's gradient and scratch are the most of backward."""
    spec = small_model("llama", vocab_size=65_536)
    recipe = make_recipe(spec.name, batch_size=13, seq_len=256, loss="liger", method="full")
    estimated, traced = estimate_memory(ResolvedRecipe(spec, recipe)), traced_tensors(ResolvedRecipe(spec, recipe))
    tokens = 13 * 256
    parts = tokens // 10 + tokens
    scratch = 8 * (5 * tokens + parts) + 4 * 128 * parts
    left_out = 8 * 256 + 8 * 13 + 512
    assert 0 <= traced.phase_peaks_bytes["backward"] - estimated.phase_peaks_bytes["backward"] <= left_out < scratch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_size", [1, 2])
def test_learned_positions_are_counted_alike(batch_size: int) -> None:
    """A table of positions much larger than all else: its gradient and scratch are the most of backward."""
    spec = small_model("gpt2", vocab_size=64, max_position_embeddings=400_000)
    recipe = make_recipe(spec.name, batch_size=batch_size, seq_len=4000, method="full")
    estimated, traced = estimate_memory(ResolvedRecipe(spec, recipe)), trace(ResolvedRecipe(spec, recipe))
    parts = 4000 // 10 + 4000
    scratch = 8 * (5 * 4000 + parts) + 4 * 128 * parts
    left_out = 8 * 4000 + 8 * batch_size + 512
    assert traced.peak.operator == "aten.embedding_dense_backward"
    assert traced.peak.module == "transformer.wpe"
    assert 0 <= traced.memory.peak_requested_bytes - estimated.peak_allocated_bytes <= left_out < scratch
