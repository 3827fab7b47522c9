"""Liger's fused linear cross-entropy: for which models it exists, and how many tokens it takes at a time.

It multiplies the last hidden states by the head's weight, a chunk of tokens after the other, and makes the gradients
of both from each chunk's logits at once, in the forward pass. So the logits of one chunk are all that ever lives.

As read in liger-kernel 0.8.5, `ops/fused_linear_cross_entropy.py` and `transformers/monkey_patch.py`. Before 0.8.3 the
next chunk was made while the last one was still held, and a head that trains had its gradient made in float32 beside
the one it was added to.
"""

from __future__ import annotations

from typing import Any

OLDEST_LIGER = "0.8.3"
"""The first liger-kernel that holds what is counted here."""


def logits_per_hidden(vocab_size: int, hidden_size: int) -> int:
    """Return how many times wider a row of logits is than a row of hidden states, rounded up."""
    return -(-vocab_size // hidden_size)


def chunk_rows(tokens: Any, vocab_size: int, hidden_size: int) -> Any:
    """Return how many of ``tokens`` (a number, or an array of float64) are taken at a time.

    As many as make logits about as large as all hidden states, rounded up to a power of two.
    """
    if isinstance(tokens, int):
        share = -(-tokens // logits_per_hidden(vocab_size, hidden_size))
        return min(1 << (share - 1).bit_length(), tokens)
    import numpy as np

    share = np.ceil(tokens / logits_per_hidden(vocab_size, hidden_size))
    mantissa, exponent = np.frexp(share)  # of a power of two, the mantissa is a half
    return np.minimum(np.ldexp(1.0, exponent - (mantissa == 0.5)), tokens)
