"""Arithmetic that an operation does beyond passing over its tensors, as the operators tell it to the tape.

Memory asks for none of it; time does (`speed.operations`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from lorabench.estimator.closed_form.sizes import ONE, Extent

MatmulGroup = Literal["linear layers", "adapters", "attention", "logits and loss"]
"""What people call the parts of a step whose matrix products they ask about."""


class Matmul(NamedTuple):
    """Matmuls (m × k) · (k × n), as many as ``batch``, with float32 accumulation inside the kernel."""

    group: MatmulGroup
    m: Extent
    n: Extent
    k: Extent
    dtype: str
    batch: Extent = (1, ONE)


AttentionKernel = Literal["sdpa", "flash_attention_2", "masked"]
"""Torch's own choice of one that is given no mask, that of the package flash_attn, and torch's that is given a mask."""


class AttentionWork(NamedTuple):
    """Attention of whole sequences in one kernel that never writes the scores out.

    Scores and their use on the values are two products over each pair of positions; backward needs four, and does
    the scores' again, for they were not kept.
    """

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    kernel: AttentionKernel
    backward: bool

    @property
    def skips_masked(self) -> bool:
        """Whether the kernel passes over what the mask hides, rather than computing and discarding it."""
        return self.kernel != "masked"


class Dequantisation(NamedTuple):
    """A 4-bit weight of ``elements`` elements written out in ``dtype``."""

    elements: int
    dtype: str


class ChunkedLoss(NamedTuple):
    """The head and the loss, `sizes.CHUNK` tokens at a time: logits, and from them the gradients of both factors."""

    features: int
    """Of a token's hidden state."""
    vocabulary: int
    dtype: str
    trains: bool
    """Whether the head's weight has a gradient too."""


Work = Matmul | AttentionWork | ChunkedLoss | Dequantisation
