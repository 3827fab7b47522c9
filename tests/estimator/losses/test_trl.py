"""TRL's loss: what its tiles hold, worked out by hand, and what rehearsals with TRL 1.16 counted."""

from __future__ import annotations

import importlib.metadata
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorabench.estimator.losses.trl import TRL, tile_widths
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.flops import step_flops
from lorabench.estimator.trace.cuda_semantics import running_on_meta
from lorabench.estimator.trace.storages import StorageLedger
from lorabench.estimator.training.chunked_log_probabilities_on_meta import chunked_log_probabilities
from lorabench.estimator.training.losses import set_loss
from tests.replayed import assert_rehearsed, replayed_on

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
B, S, V, H = 3, 2001, 40_000, 64
N = B * (S - 1)  # tokens that have a next one: two chunks, of 4096 and 1904
TILE = 2 * 4096 * 32_768
MASK, TARGETS, VECTOR = N, 8 * N, 4 * N


def test_tiles_are_4096_tokens_by_32768_entries_and_the_last_ones_smaller() -> None:
    assert TRL.divided(B, S) == N
    assert (TRL.chunk_rows(N, V, H), TRL.chunk_count(N, V, H), TRL.last_chunk_rows(N, V, H)) == (4096, 2, 1904)
    assert TRL.chunk_rows(100, V, H) == 100
    assert tile_widths(V) == [32_768, 7232]
    assert tile_widths(32_000) == [32_000]


@pytest.mark.parametrize(
    ("dtype", "autocast", "trains", "casts"),
    [
        (BFLOAT16, None, False, 0),
        (BFLOAT16, BFLOAT16, True, 0),
        # A chunk of hidden states and a part of the weight in bf16, for each tile.
        (FLOAT32, BFLOAT16, False, 2 * 4096 * H + 2 * 32_768 * H),
        (FLOAT32, BFLOAT16, True, 2 * 4096 * H + 2 * 32_768 * H),
    ],
)
def test_the_loss_holds_a_tile_and_float32_gradients(dtype: Any, autocast: Any, trains: bool, casts: int) -> None:
    hidden = torch.empty(B, S, H, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.nn.Parameter(torch.empty(V, H, dtype=dtype, device="meta"), requires_grad=trains)
    labels = torch.empty(B, S, dtype=torch.int64, device="meta")
    ledger = StorageLedger("meta")
    ledger.adopt("weights", hidden, weight, labels)
    held = dtype.itemsize * (B * S * H + V * H) + 8 * B * S
    with running_on_meta(torch.nn.Identity(), "cuda"), ledger:
        ledger.begin_step()
        ledger.begin_phase("forward")
        with torch.autocast("meta", autocast) if autocast else nullcontext():
            loss = chunked_log_probabilities(hidden, weight, labels)
        ledger.begin_phase("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        peaks = ledger.breakdown().phase_peaks_bytes
    rows = dtype.itemsize * N * H
    assert peaks["forward"] == held + MASK + rows + TARGETS + 7 * VECTOR + TILE + max(casts, 3 * VECTOR)
    saved = MASK + rows + TARGETS + 2 * VECTOR  # the logarithm of the sum, and the entropy
    gradients = 4 * N * H + (4 * V * H if trains else 0)
    in_16_bits = 0 if dtype == FLOAT32 else 2 * N * H + (2 * V * H if trains else 0)
    expected = held + saved + VECTOR + gradients + TILE + max(casts, in_16_bits)
    assert peaks["backward"] == pytest.approx(expected, abs=3 * VECTOR)  # small ones of masked_scatter and the sum
    assert (weight.grad is not None) == trains


REHEARSED = [
    ("meta-llama/Llama-3.2-1B", {}, 3_302_777_856, 3_370_123_264),
    (
        "meta-llama/Llama-3.2-1B",
        {"batch_size": 4, "method": "qlora", "adapter_dtype": "bfloat16"},
        3_130_156_032,
        3_271_557_120,
    ),
    ("meta-llama/Llama-3.2-1B", {"batch_size": 3, "method": "full"}, 20_998_032_384, 22_529_703_936),
    (
        "Qwen/Qwen2.5-0.5B",
        {
            "batch_size": 8,
            "seq_len": 1024,
            "method": "full",
            "dtype": "bfloat16",
            "mixed_precision": "no",
            "gradient_checkpointing": False,
        },
        15_519_534_080,
        16_001_269_760,
    ),
    ("google/gemma-2-2b", {"attn_implementation": "eager", "seq_len": 1024}, 6_035_638_272, 6_387_924_992),
]
"""Model, options, and peaks of allocated and reserved bytes on a simulated H200 with trl 1.16.0 and torch 2.13."""


@pytest.mark.parametrize(("model", "options", "allocated", "reserved"), REHEARSED)
def test_the_estimate_agrees_with_rehearsals(
    model: str, options: dict[str, Any], allocated: int, reserved: int
) -> None:
    memory = replayed_on("h200", model, loss="trl", **options)
    assert_rehearsed(memory, allocated=allocated, reserved=reserved, within=(1e-4, 5e-4))


def test_the_logits_are_computed_twice() -> None:
    spec = find_model("meta-llama/Llama-3.2-1B")
    standard, tiled = (
        step_flops(ResolvedRecipe(spec, make_recipe(spec.name, batch_size=2, seq_len=512, loss=loss)))
        for loss in ("standard", "trl")
    )
    head = 2 * spec.vocab_size * spec.hidden_size
    # All matmuls leave out the last token of each sequence, and the logits are made once more.
    assert tiled.model - standard.model == head * 2 * (2 * 511 - 2 * 512)
    assert tiled.hardware - standard.hardware == head * 2 * (3 * 511 - 2 * 512)


def test_on_a_gpu_trl_s_own_head_is_added_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[str, ...]] = []
    of_trl = SimpleNamespace(add_fused_lm_head=lambda model, outputs: added.append(outputs))
    monkeypatch.setitem(sys.modules, "trl.trainer.utils", of_trl)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.16.0")
    model = SimpleNamespace(device=torch.device("cuda"), forward=lambda **options: options)
    set_loss(model, make_recipe("test/llama", loss="trl"))
    assert added == [("log_probs", "entropy", "is_top1")]
    assert model.forward(labels=1) == {"labels": 1, "fused_lm_head": True}
