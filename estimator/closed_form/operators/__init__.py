"""torch's operators on sizes: the tensors that each saves for backward, and allocates in forward and backward.

As read in torch 2.13 (its kernels, and derivatives.yaml, whose formula stands beside each backward), bitsandbytes 0.50,
liger-kernel 0.8.5, trl 1.16 and cut-cross-entropy 25.1. If CUDA and the CPU run different kernels, the `Backend`
decides.
"""

from __future__ import annotations

from lorabench.estimator.closed_form.operators.attention import Attention
from lorabench.estimator.closed_form.operators.chunked_log_probabilities import ChunkedLogProbabilities
from lorabench.estimator.closed_form.operators.cut_cross_entropy import CutCrossEntropy
from lorabench.estimator.closed_form.operators.loss import Loss
from lorabench.estimator.closed_form.operators.matmuls import Matmuls
from lorabench.estimator.closed_form.operators.norms import Norms


class Operators(Matmuls, Norms, Attention, Loss, ChunkedLogProbabilities, CutCrossEntropy):
    """All operators, on one tape."""
