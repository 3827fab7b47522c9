"""Liger's fused linear cross-entropy: the number of its chunks, and their sizes.

For one chunk of tokens at a time, forward multiplies the last hidden states by the head's weight. It computes the
gradients of both from the chunk's logits at once. So only one chunk of logits is ever alive.

As read in liger-kernel 0.8.5, `ops/fused_linear_cross_entropy.py` and `transformers/monkey_patch.py`. Before 0.8.3 two
chunks were alive at once, and the gradient of a trained head was computed in a float32 tensor of its own.
"""

from __future__ import annotations

from typing import Any

from lorabench.estimator.losses.fused import FusedLoss

FUSED_LOSS_ALONE = {
    **dict.fromkeys(("cross_entropy", "geglu", "layer_norm", "relu_squared", "rms_norm", "rope", "swiglu"), False),
    "fused_linear_cross_entropy": True,
}
"""Trainer's ``liger_kernel_config`` for the loss without Liger's other kernels, by liger-kernel 0.8.5's names."""


def logits_per_hidden(vocab_size: int, hidden_size: int) -> int:
    """Return ⌈V/h⌉: how many times wider a token's logits are than its hidden state."""
    return -(-vocab_size // hidden_size)


def chunk_rows(tokens: Any, vocab_size: int, hidden_size: int) -> Any:
    """Return the tokens per chunk: ``tokens`` / ⌈V/h⌉, rounded up to a power of two, and at most ``tokens``.

    A chunk of logits is then about as large as all hidden states. ``tokens``: a number, or an array of float64.
    """
    if isinstance(tokens, int):
        share = -(-tokens // logits_per_hidden(vocab_size, hidden_size))
        return min(1 << (share - 1).bit_length(), tokens)
    import numpy as np

    share = np.ceil(tokens / logits_per_hidden(vocab_size, hidden_size))
    mantissa, exponent = np.frexp(share)  # the mantissa of a power of two is 0.5
    return np.minimum(np.ldexp(1.0, exponent - (mantissa == 0.5)), tokens)


def adds_16_bit_products(compute_capability: str | None) -> bool:
    """Return whether a matmul of 16-bit factors adds to the head's gradient itself (addmm), without its own result.

    Liger asks for compute capability 8.0. An unknown GPU has it.
    """
    known = compute_capability is not None and not compute_capability.startswith("gfx")
    return not known or float(compute_capability or 0) >= 8


LIGER = FusedLoss(
    name="liger",
    title="Liger",
    package="liger-kernel",
    module="liger_kernel",
    oldest="0.8.3",
    counted="all",
    chunk_rows=chunk_rows,
    rule="B·S / ⌈V/h⌉, rounded up to a power of two",
    model_types=frozenset(
        {
            *("deepseek_v3", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "gpt_oss", "llama", "ministral"),
            *("mistral", "mixtral", "nemotron", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "qwen3_next"),
            "smollm3",
        }
    ),
)
