"""The buffers of gradient clipping on CUDA: torch's `clip_grad_norm_`, with its kernel for many tensors.

The kernel divides each tensor into chunks, and writes one partial sum for each. Its buffer has room for as many chunks
of every tensor as the largest has (`foreach_tensor_norm_cuda` of ForeachReduceOp.cu).
"""

from __future__ import annotations

from collections.abc import Iterable

from lorabench.estimator.dtypes import ITEMSIZE, Dtype
from lorabench.estimator.optimizers.tensors import TrainedTensors

CHUNK = 65_536
"""Elements of a chunk."""
PARTIAL_SUM = 4
"""Bytes: float32 for all dtypes of gradients."""


def norm_buffer(count: int, largest: int) -> int:
    """Return the bytes of the kernel's buffer for the norms of ``count`` tensors of up to ``largest`` elements."""
    return count * -(-largest // CHUNK) * PARTIAL_SUM


def clipping_buffers(tensors: Iterable[TrainedTensors]) -> list[tuple[int, list[int]]]:
    """Return for each dtype of gradients the bytes of the kernel's buffer, and of each gradient's norm."""
    by_dtype: dict[Dtype, list[TrainedTensors]] = {}
    for each in tensors:
        by_dtype.setdefault(each.dtype, []).append(each)
    return [
        (norm_buffer(count, max(each.elements for each in of_dtype)), [ITEMSIZE[dtype]] * count)
        for dtype, of_dtype in by_dtype.items()
        for count in [sum(each.count for each in of_dtype)]
    ]


def clipping_peak(tensors: Iterable[TrainedTensors]) -> int:
    """Return the most bytes of buffers and norms that are alive at the same time."""
    peak = norms = 0
    for buffer, sizes in clipping_buffers(tensors):
        norms += sum(sizes)
        peak = max(peak, norms + buffer)
    return peak
