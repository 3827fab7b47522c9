"""Liger's fused loss: what it holds, worked out by hand from its chunks; and when it is refused."""

from __future__ import annotations

import importlib.metadata
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.errors import UserError
from lorabench.estimator.losses.liger import LIGER, chunk_rows
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.cuda_semantics import running_on_meta
from lorabench.estimator.trace.storages import StorageLedger
from lorabench.estimator.trace.trace import trace
from lorabench.estimator.training import fused_loss_on_meta as fused_loss
from lorabench.estimator.training.losses import set_loss
from tests.small_models import small_model
from tests.traced_tensors import traced_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "hidden_size", "rows", "chunks", "last"),
    [
        (16384, 32000, 4096, 2048, 8, 2048),  # Llama-2-7B: logits are 8 times as wide
        (8192, 128256, 4096, 256, 32, 256),  # Llama-3.1-8B: 32 times, the last of them partly
        (6000, 128256, 4096, 256, 24, 112),  # 187.5 tokens, to a power of two; 23 times 256 are 5888
        (2048, 256000, 2304, 32, 64, 32),  # Gemma-2-2B: 112 times, 18.3 tokens
        (8960, 32768, 4096, 2048, 5, 768),  # 1120 tokens, to a power of two; 4 times 2048 are 8192
        (100, 300, 512, 100, 1, 100),  # narrower than hidden states: all at once
    ],
)
def test_a_chunk_of_logits_is_about_as_large_as_the_hidden_states(
    tokens: int, vocab_size: int, hidden_size: int, rows: int, chunks: int, last: int
) -> None:
    assert chunk_rows(tokens, vocab_size, hidden_size) == rows
    assert chunk_rows(np.array([float(tokens)]), vocab_size, hidden_size).tolist() == [rows]
    assert LIGER.chunk_count(tokens, vocab_size, hidden_size) == chunks
    assert LIGER.last_chunk_rows(tokens, vocab_size, hidden_size) == last


def test_chunks_of_arrays_are_those_of_numbers() -> None:
    tokens = np.arange(1.0, 5000.0)
    expected = [chunk_rows(int(count), 4096, 128) for count in tokens]
    assert chunk_rows(tokens, 4096, 128).tolist() == expected


T, V, H, C = 1024, 8192, 512, 64  # 8192 / 512 = 16, 1024 / 16 = 64
LOSSES = 4 * T + T  # float32, and which tokens count


@pytest.mark.parametrize(
    ("dtype", "autocast", "trains", "capability", "forward"),
    [
        # The gradient of the hidden states and one chunk of logits, all in bf16.
        (BFLOAT16, BFLOAT16, False, None, 2 * T * H + 2 * C * V),
        (BFLOAT16, None, False, None, 2 * T * H + 2 * C * V),
        # A float32 head under autocast: bf16 copies of the weight and of a chunk of hidden states for each product.
        (FLOAT32, BFLOAT16, False, None, 4 * T * H + 2 * V * H + 2 * C * H + 2 * C * V),
        # One that trains, too: its float32 gradient, and the copy that autocast keeps for the second product.
        (FLOAT32, BFLOAT16, True, "8.0", 4 * T * H + 4 * V * H + 2 * V * H + 2 * V * H + 2 * C * H + 2 * C * V),
        # No kernel adds float32 products to a sum: each chunk's share of the weight's gradient is made first.
        (FLOAT32, None, True, "8.0", 4 * T * H + 4 * V * H + 4 * C * V + 4 * V * H),
        # In bf16 one does.
        (BFLOAT16, None, True, "8.0", 2 * T * H + 2 * V * H + 2 * C * V),
        # Weights in another 16-bit dtype than the products: those are made, and copied to float32.
        (FLOAT16, BFLOAT16, True, "8.0", 2 * T * H + 2 * V * H + 2 * C * V + (2 + 4) * V * H),
        # Before compute capability 8.0 no kernel does for any dtype. Autocast keeps a 16-bit copy of the weight.
        (FLOAT32, FLOAT16, True, "7.5", 4 * T * H + 4 * V * H + 2 * V * H + 2 * C * V + (2 + 4) * V * H),
    ],
)
def test_the_fused_loss_holds_what_liger_would(
    dtype: Any, autocast: Any, trains: bool, capability: str | None, forward: int
) -> None:
    hidden = torch.empty(T, H, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.nn.Parameter(torch.empty(V, H, dtype=dtype, device="meta"), requires_grad=trains)
    targets = torch.empty(T, dtype=torch.int64, device="meta")
    ledger = StorageLedger("meta")
    ledger.adopt("weights", hidden, weight, targets)
    held = dtype.itemsize * (T * H + V * H) + 8 * T
    with running_on_meta(torch.nn.Identity(), "cuda", compute_capability=capability), ledger:
        ledger.begin_step()
        ledger.begin_phase("forward")
        with torch.autocast("meta", autocast) if autocast else nullcontext():
            loss = fused_loss._function().apply(hidden, weight, targets)
        ledger.begin_phase("backward")
        loss.backward()
        assert ledger.breakdown().phase_peaks_bytes["forward"] == held + forward + LOSSES
    assert hidden.grad is not None
    assert hidden.grad.untyped_storage().nbytes() == dtype.itemsize * T * H
    assert (weight.grad is not None) == trains


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"method": "lora"}),
        ("llama", {"method": "qlora", "batch_size": 2}),
        ("gemma2", {"method": "full", "attn_implementation": "eager", "gradient_accumulation": 2}),
        ("qwen2", {"method": "full", "dtype": "float16", "batch_size": 2}),  # a tied head
        ("qwen3", {"method": "full", "mixed_precision": "no", "gradient_checkpointing": False}),
    ],
)
def test_the_closed_form_meets_the_trace_in_forward_and_backward(family: str, options: dict[str, Any]) -> None:
    spec = small_model(family, vocab_size=8192)
    recipe = make_recipe(spec.name, seq_len=512, loss="liger", optim="sgd", **options)
    resolved = ResolvedRecipe(spec, recipe)
    for capability in ("8.0", "7.5"):
        estimated = estimate_memory(resolved, compute_capability=capability)
        traced = traced_tensors(resolved, compute_capability=capability)
        for phase in ("forward", "backward"):
            assert estimated.phase_peaks_bytes[phase] == pytest.approx(traced.phase_peaks_bytes[phase], rel=5e-4), phase
        assert estimated.components["logits"] == traced.components["logits"]


def chunks_of_logits(sizes: list[int], vocab_size: int) -> list[int]:
    """Return the tokens of each 16-bit tensor as wide as the vocabulary, in order."""
    return [size // (2 * vocab_size) for size in sizes if size and size % (2 * vocab_size) == 0]


@pytest.mark.parametrize(
    ("batch_size", "seq_len", "rows"),
    [(1, 300, [64] * 4 + [44]), (2, 512, [128] * 8), (1, 65, [16] * 4 + [1])],  # logits are 7.8 times as wide
)
def test_the_replay_has_every_chunk_and_a_shorter_last_one(batch_size: int, seq_len: int, rows: list[int]) -> None:
    vocabulary, hidden = 1999, 256
    spec = small_model("llama", vocab_size=vocabulary, hidden_size=hidden, num_attention_heads=8, num_key_value_heads=8)
    recipe = make_recipe(
        spec.name,
        method="qlora",
        prepare_kbit=True,
        loss="liger",
        batch_size=batch_size,
        seq_len=seq_len,
        lora_dropout=0.0,
    )
    training = Training(ResolvedRecipe(spec, recipe))
    for walked in (training.micro_batches[0], training.evaluation):
        found = [size for size in chunks_of_logits(walked.sizes, vocabulary) if size != hidden]
        assert found == rows  # copies of the head, which are as wide, have as many rows as hidden states are wide


def test_an_evaluation_computes_no_gradients() -> None:
    spec = small_model("llama", vocab_size=1999, hidden_size=256, num_attention_heads=8, num_key_value_heads=8)
    training = Training(ResolvedRecipe(spec, make_recipe(spec.name, method="full", loss="liger", seq_len=300)))
    copy = 2 * 1999 * 256
    copies = [walked.sizes.count(copy) for walked in (*training.micro_batches, training.evaluation)]
    # A 16-bit copy of the head for the logits of each of five chunks. In training autocast keeps one for the gradients.
    assert copies == [6, 5]


def test_full_fine_tuning_holds_the_head_three_times_more_at_the_loss() -> None:
    spec = find_model("meta-llama/Llama-3.2-1B")
    memory = estimate_memory(
        ResolvedRecipe(spec, make_recipe(spec.name, method="full", loss="liger", optim="sgd", seq_len=512))
    )
    layers, tokens, hidden, vocabulary, chunk = 16, 512, 2048, 128256, 16  # 512 / 62.6 = 8.2 tokens
    head = vocabulary * hidden
    # Float32, the head tied to the embedding; autocast keeps bf16 copies of the layers' linear ones.
    weights = 4 * 1_235_814_400 + 2 * (1_235_814_400 - head - (2 * layers + 1) * hidden)
    inputs = (layers + 3) * 4 * tokens * hidden  # of the checkpointed layers; the last norm's input, rows and output
    # A float32 gradient, the bf16 copy that autocast keeps, the one of this product, and a chunk's logits.
    loss = 4 * tokens * hidden + (4 + 2 + 2) * head + 2 * chunk * (vocabulary + hidden)
    peak = memory.phase_peaks_bytes["forward"] - memory.components.get("workspaces", 0)
    assert peak == pytest.approx(weights + inputs + loss, rel=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "granite"])
def test_models_without_a_fused_loss_are_refused(family: str) -> None:
    spec = small_model(family)
    with pytest.raises(UserError, match=rf"no fused loss for small/{family}.* use --loss standard"):
        trace(ResolvedRecipe(spec, make_recipe(spec.name, loss="liger")))


class RealModel:
    device = torch.device("cuda")


def test_on_a_gpu_liger_replaces_the_loss_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import liger

    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(liger, "apply_liger_kernel", lambda model, config: asked.append(config))
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.8.5")
    set_loss(RealModel(), make_recipe("test/llama", loss="liger"))
    [config] = asked
    assert [name for name, replaced in config.items() if replaced] == ["fused_linear_cross_entropy"]
    assert {"rms_norm", "rope", "swiglu", "geglu", "cross_entropy"} < set(config)


def test_a_liger_that_holds_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.8.2")
    with pytest.raises(UserError, match=r"liger-kernel 0\.8\.2 .*pip install 'liger-kernel>=0\.8\.3'"):
        set_loss(RealModel(), make_recipe("test/llama", loss="liger"))
