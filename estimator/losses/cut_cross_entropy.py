"""Apple's Cut Cross-Entropy (Wijmans et al. 2024), which never stores a logit: the loss of axolotl's plugin.

Forward computes the logarithm of the sum and the label's logit of each token. Backward computes the logits again, and
adds their gradient's products to the gradients of the hidden states and of the head's weight, in 16 bits.

As read in cut-cross-entropy 25.1.1, `cce.py`. axolotl's fork of November 2026 allocates the same by default.
"""

from __future__ import annotations

from lorabench.estimator.losses.fused import FusedLoss

CUT_CROSS_ENTROPY = FusedLoss(
    name="cut-cross-entropy",
    title="Cut Cross-Entropy",
    package="cut-cross-entropy",
    module="cut_cross_entropy",
    oldest="25.1.1",
    counted="labelled",
    chunk_rows=lambda tokens, vocab_size, hidden_size: tokens,
    rule="all that have a next one",
)
