"""torch's operators on sizes: what each allocates, what it saves for backward, and what its backward allocates.

As read in torch 2.13 (derivatives.yaml, whose formula stands beside each backward, and the kernels), bitsandbytes 0.50
and liger-kernel 0.8.5. Where CUDA and the CPU run different kernels, `Backend` decides.
"""

from __future__ import annotations

from lorabench.estimator.closed_form.operators.attention import Attention
from lorabench.estimator.closed_form.operators.loss import Loss
from lorabench.estimator.closed_form.operators.matmuls import Matmuls
from lorabench.estimator.closed_form.operators.norms import Norms


class Operators(Matmuls, Norms, Attention, Loss):
    """All operators, on one tape."""
