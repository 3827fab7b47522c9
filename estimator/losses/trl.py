"""TRL's fused head: log-probabilities of the labels, from tiles of 4096 tokens by 32,768 vocabulary entries.

Forward folds each tile into running sums. Backward computes each tile again, and adds its share to the gradients of the
hidden states and, if that trains, of the head's weight. Both gradients are float32.

As read in trl 1.16.0, `kernels/chunked_logprob.py` and `trainer/utils.py` (`add_fused_lm_head`). Its SFTTrainer has no
other loss, and asks for the entropy and the accuracy too.
"""

from __future__ import annotations

from typing import Any

from lorabench.estimator.losses.fused import FusedLoss

TILE_TOKENS = 4096
TILE_VOCABULARY = 32_768
OUTPUTS = ("log_probs", "entropy", "is_top1")
"""What SFTTrainer asks of each token."""


def chunk_rows(tokens: Any, vocab_size: int, hidden_size: int) -> Any:
    """Return the tokens per tile: 4096, or all ``tokens`` if they are fewer (a number, or an array of float64)."""
    if isinstance(tokens, int):
        return min(tokens, TILE_TOKENS)
    import numpy as np

    return np.minimum(tokens, TILE_TOKENS)


def tile_widths(vocab_size: int) -> list[int]:
    """Return the vocabulary entries of each tile of a chunk of tokens."""
    return [min(TILE_VOCABULARY, vocab_size - start) for start in range(0, vocab_size, TILE_VOCABULARY)]


TRL = FusedLoss(
    name="trl",
    title="TRL",
    package="trl",
    module="trl",
    oldest="1.16.0",
    counted="labelled",
    chunk_rows=chunk_rows,
    tile_vocabulary=TILE_VOCABULARY,
    rule="4096, or B·(S − 1) if that is less",
)
