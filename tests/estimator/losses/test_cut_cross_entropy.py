"""Cut Cross-Entropy: what it holds instead of logits, and what rehearsals with Apple's package counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.trace.cuda_semantics import running_on_meta
from lorabench.estimator.trace.storages import StorageLedger
from lorabench.estimator.training.cut_cross_entropy_on_meta import cut_cross_entropy
from tests.replayed import assert_rehearsed, replayed_on

B, S, V, H = 4, 1025, 8192, 256
N = B * (S - 1)


@pytest.mark.parametrize("trains", [False, True])
def test_the_loss_holds_vectors_and_the_gradients_alone(trains: bool) -> None:
    hidden = torch.empty(B, S, H, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.nn.Parameter(torch.empty(V, H, dtype=torch.bfloat16, device="meta"), requires_grad=trains)
    labels = torch.empty(B, S, dtype=torch.int64, device="meta")
    ledger = StorageLedger("meta")
    ledger.adopt("weights", hidden, weight, labels)
    held = 2 * (B * S * H + V * H) + 8 * B * S
    with running_on_meta(torch.nn.Identity(), "cuda"), ledger:
        ledger.begin_step()
        ledger.begin_phase("forward")
        loss = cut_cross_entropy(hidden, weight, labels)
        ledger.begin_phase("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        peaks = ledger.breakdown().phase_peaks_bytes
    # Indices of the labelled tokens in 64 and 32 bits; then each token's sum, loss and position, and mean logits.
    assert peaks["forward"] == held + max(2 * 8 * N + 2 * 4 * N, (8 + 4 + 4) * N + 4 * V + 4)
    saved = (8 + 4) * N + 4 * V
    gradients = 2 * B * S * H + (2 * V * H if trains else 0)
    assert peaks["backward"] == pytest.approx(held + saved + gradients + 4 * V, abs=16)  # and the vocabulary's order


REHEARSED = [
    ("meta-llama/Llama-3.2-1B", {}, 3_302_794_240, 3_370_123_264),
    (
        "meta-llama/Llama-3.2-1B",
        {"batch_size": 4, "method": "qlora", "adapter_dtype": "bfloat16"},
        3_130_221_568,
        3_271_557_120,
    ),
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
        14_785_721_344,
        15_699_279_872,
    ),
    ("google/gemma-2-2b", {"attn_implementation": "eager", "seq_len": 1024}, 6_035_122_176, 6_354_370_560),
    ("microsoft/phi-2", {"seq_len": 1024, "batch_size": 2}, 6_972_177_408, 7_384_072_192),
]
"""Model, options, and peaks of allocated and reserved bytes on a simulated H200 with cut-cross-entropy 25.1.1."""


@pytest.mark.parametrize(("model", "options", "allocated", "reserved"), REHEARSED)
def test_the_estimate_agrees_with_rehearsals(
    model: str, options: dict[str, Any], allocated: int, reserved: int
) -> None:
    memory = replayed_on("h200", model, loss="cut-cross-entropy", **options)
    assert_rehearsed(memory, allocated=allocated, reserved=reserved, within=(1e-4, 1e-4))


@pytest.mark.parametrize("options", [{"method": "full"}, {"method": "qlora", "prepare_kbit": True}])
def test_a_float32_head_is_refused_as_its_kernels_do(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="its kernels take a head in 16 bits"):
        refuse_impossible(recipe_for(find_model("llama-3.2-1b"), loss="cut-cross-entropy", **options))
