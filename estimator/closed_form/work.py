"""The arithmetic of operations that are not memory-bound. Operators report it to the tape.

Memory does not depend on it; time does (`speed.operations`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from lorabench.estimator.closed_form.sizes import ONE, Extent, Monomial

MatmulGroup = Literal["linear layers", "adapters", "attention", "logits and loss"]
"""Names for the parts of a step with matmuls."""


class Matmul(NamedTuple):
    """``batch`` matmuls (m × k) · (k × n), with float32 accumulation inside the kernel."""

    group: MatmulGroup
    m: Extent
    n: Extent
    k: Extent
    dtype: str
    batch: Extent = (1, ONE)


AttentionKernel = Literal["sdpa", "flash_attention_2", "masked"]
"""torch's choice without a mask, the kernel of the package flash_attn, and torch's kernel with a mask."""


class AttentionWork(NamedTuple):
    """Attention of whole sequences in one kernel that never stores the scores.

    Forward has two matmuls over each pair of positions: scores, and their product with the values. Backward has four,
    and recomputes the scores.
    """

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    kernel: AttentionKernel
    backward: bool

    @property
    def skips_masked(self) -> bool:
        """Whether the kernel skips masked pairs, instead of computing and discarding them."""
        return self.kernel != "masked"


class Dequantisation(NamedTuple):
    """Dequantisation of a 4-bit weight of ``elements`` elements into ``dtype``."""

    elements: int
    dtype: str


LossMatmul = Literal["logits", "logits again", "hidden", "weight"]
"""A matmul of head and loss: the logits, and once more in backward; the gradient of hidden states or of the weight."""


class ChunkedLoss(NamedTuple):
    """Matmuls of head and loss for `sizes.CHUNK` of ``tokens`` at a time."""

    features: int
    """Features of a token's hidden state."""
    vocabulary: int
    width: int
    """Most vocabulary entries of one matmul."""
    dtype: str
    matmuls: tuple[LossMatmul, ...]
    accesses: int
    """Memory accesses of the loss's kernel, per logit."""
    tokens: Monomial


Work = Matmul | AttentionWork | ChunkedLoss | Dequantisation
