"""Scratch memory: tensors that CUDA's kernels allocate and free within one operator, unseen by a dispatch mode.

As read in torch 2.13 and bitsandbytes 0.50. Each function returns tensors on the device of its arguments: those that
its kernel allocates before its results, and those after. They are alive while the operator runs. Their order determines
the blocks that the caching allocator gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from lorabench.estimator.memory.clipping import norm_buffer
from lorabench.estimator.memory.embedding_backward import embedding_scratch
from lorabench.estimator.memory.reductions import Multiprocessors, reduction_buffer

if TYPE_CHECKING:
    import torch


class ScratchTensors(NamedTuple):
    """The scratch memory of a kernel, in the order of its allocation."""

    before: list[torch.Tensor]
    """Tensors allocated before the results."""
    after: list[torch.Tensor]
    """Tensors allocated after the results."""


Scratch = Mapping[Any, Callable[..., ScratchTensors]]
"""Operator → function from its arguments to the scratch memory of its kernel. Other operators have none."""

SORTED_COPIES = 6
"""int64 numbers per index that a kernel sorts to sum rows."""


def cuda_scratch(gpu: Multiprocessors | None = None) -> Scratch:
    """Return the scratch memory of CUDA's kernels. It includes buffers of sums only if ``gpu`` is known."""
    import torch

    aten = torch.ops.aten
    sums: dict[Any, Callable[..., ScratchTensors]] = {}
    if gpu is not None:
        sums = dict.fromkeys((aten.sum.dim_IntList, aten.mean.dim), partial(_sum_of_rows, gpu))
    return {
        **sums,
        aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
        aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
        aten._scaled_dot_product_efficient_attention.default: _efficient_forward,
        aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
        aten._softmax_backward_data.default: _softmax_backward,
        aten._safe_softmax.default: _safe_softmax,
        aten.embedding_dense_backward.default: _embedding_backward,
        aten.index_put.default: _index_put,
        aten._foreach_norm.Scalar: _norms,
        **_four_bit_matmuls(_gemm_4bit_on_cuda),
    }


def cpu_scratch() -> Scratch:
    """Return the scratch memory of bitsandbytes' Python code on a CPU. Other kernels have none that is known."""
    return _four_bit_matmuls(_gemm_4bit_on_cpu)


def _four_bit_matmuls(function: Callable[..., ScratchTensors]) -> dict[Any, Callable[..., ScratchTensors]]:
    import torch

    try:
        import bitsandbytes  # noqa: F401 - it defines the operator
    except ImportError:
        return {}
    return {torch.ops.bitsandbytes.gemm_4bit.default: function}


# bitsandbytes


def _gemm_4bit_on_cuda(
    activations: torch.Tensor,
    codes: torch.Tensor,
    shape: list[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    *_: Any,
) -> ScratchTensors:
    """Return the dequantised weight; with double quantisation also its absmax, before and after the offset is added.

    The fused kernels, which need none of these, run below about 1536 rows at most, depending on the GPU. A recipe that
    fits without them also fits with them.
    """
    weight = activations.new_empty(shape)
    if absmax_8bit is None:
        return ScratchTensors([weight], [])
    return ScratchTensors([absmax.new_empty(absmax_8bit.shape), absmax.new_empty(absmax_8bit.shape), weight], [])


def _gemm_4bit_on_cpu(*args: Any) -> ScratchTensors:
    """Return the dequantised weight and absmax. The absmax without offset is freed before the matmul."""
    return ScratchTensors(_gemm_4bit_on_cuda(*args).before[-2:], [])


# Attention


def _flash_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    *_: Any,
    **__: Any,
) -> ScratchTensors:
    """Return the float32 accumulator of the query's gradient, the row sums, and gradients of expanded keys and values.

    ``query`` is (batch, heads, length, head_dim); lengths are padded to 128, heads to 32 columns, or 64 above 128
    (`flash_api.cpp`, mha_bwd). An output or gradient whose memory layout is not (batch, length, heads, head_dim) is
    copied to that layout (`_flash_attention_backward` of `attention_backward.cu`).
    """
    import torch

    batch, heads, length, head_dim = query.shape
    rows = _round_up(length, 128)
    columns = _round_up(head_dim, 32 if head_dim <= 128 else 64)
    copies = [
        by_head.new_empty(by_head.shape) for by_head in (grad, output) if not by_head.transpose(1, 2).is_contiguous()
    ]
    after = [
        query.new_empty((batch, heads, rows), dtype=torch.float32),
        query.new_empty((batch, rows, heads, columns), dtype=torch.float32),
    ]
    if key.shape[1] != heads:
        expanded = (batch, key.shape[2], heads, head_dim)
        after += [query.new_empty(expanded), query.new_empty(expanded)]
    return ScratchTensors(copies, after)


def _cudnn_backward(grad: torch.Tensor, query: torch.Tensor, *_: Any, **__: Any) -> ScratchTensors:
    """Return the workspace: in float32 the query's gradient, and a number for each token and head.

    ``query`` is (batch, heads, length, head_dim). cuDNN's frontend requests it (`sdpa_bwd`).
    """
    import torch

    *rows, head_dim = query.shape
    return ScratchTensors([], [query.new_empty((*rows, head_dim + 1), dtype=torch.float32)])


def _efficient_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> ScratchTensors:
    """Return the float32 accumulator that 16-bit outputs wider than one block of keys need (`kernel_forward.h`)."""
    import torch

    widest_kept_in_registers = 128
    if query.dtype == torch.float32 or value.shape[-1] <= widest_kept_in_registers:
        return ScratchTensors([], [])
    batch, heads, length, _head_dim = query.shape
    return ScratchTensors([], [query.new_empty((batch, length, heads, value.shape[-1]), dtype=torch.float32)])


def _efficient_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any
) -> ScratchTensors:
    """Return the row sums and the workspace: a float32 accumulator of the query's gradient.

    On GPUs since the A100, blocks are (`cutlassB.h`): 64 × 64 for heads up to 64, 128 × 128 up to 128, 128 × 64
    above. Each block of the accumulator has 16 bytes of locks (`kernel_backward.h`). Wide heads accumulate the
    gradients of keys and values too, one block of keys for each part that the keys are split into; that part, at most
    some MiB, is left out here.
    """
    import torch

    batch, heads, length, head_dim = query.shape
    rows, columns = (64, 64) if head_dim <= 64 else (128, 128) if head_dim <= 128 else (128, 64)
    blocks = -(-length // rows) * -(-head_dim // columns)
    workspace = batch * heads * blocks * (rows * columns + 4)
    row_sums = query.new_empty((batch, heads, length), dtype=torch.float32)
    return ScratchTensors([], [row_sums, query.new_empty(workspace, dtype=torch.float32)])


# Gradient clipping


def _norms(tensors: list[torch.Tensor], *_: Any, **__: Any) -> ScratchTensors:
    """Return the partial sums of all tensors' norms."""
    import torch

    sums = norm_buffer(len(tensors), max(each.numel() for each in tensors))
    return ScratchTensors([tensors[0].new_empty(sums, dtype=torch.uint8)], [])


# Softmax


def _softmax_backward(grad: torch.Tensor, *_: Any) -> ScratchTensors:
    """Return the gradient times the softmax, which `softmax_backward_cuda_out` (SoftMax.cu) begins with."""
    return ScratchTensors([], [grad.new_empty(grad.shape)])


def _safe_softmax(scores: torch.Tensor, *_: Any) -> ScratchTensors:
    """Return the boolean tensor of masked scores (`_safe_softmax` of `attention.cpp`, for the math kernel)."""
    import torch

    return ScratchTensors([], [scores.new_empty(scores.shape, dtype=torch.bool)])


# Sums


def _sum_of_rows(
    gpu: Multiprocessors, values: torch.Tensor, dims: list[int] | None = None, *_: Any, **__: Any
) -> ScratchTensors:
    """Return the buffer of a sum or mean over the first dimensions, such as the gradient of a norm's weight.

    The semaphores beside it, some hundred bytes, are left out.
    """
    import torch

    reduced = {dim % values.dim() for dim in dims or ()}
    over_rows = reduced == set(range(len(reduced))) and 0 < len(reduced) < values.dim()
    if not over_rows or not values.is_contiguous() or values.element_size() > 4:
        return ScratchTensors([], [])
    outputs = prod(values.shape[len(reduced) :])
    size = reduction_buffer(values.numel() // outputs, outputs, values.element_size(), gpu)
    return ScratchTensors([], [values.new_empty(size, dtype=torch.uint8)] if size else [])


# Lookups


def _index_put(
    rows: torch.Tensor, indices: list[torch.Tensor], values: torch.Tensor, accumulate: bool = False
) -> ScratchTensors:
    """Return the scratch memory of sorting the indices, which CUDA does to sum rows: tensors of the indices' size.

    They are the indices and their order, both sorted (`index_put_with_sort_kernel` of `Indexing.cu`), and both once
    more for cub's radix sort, which alternates between two buffers.
    """
    if not accumulate:
        return ScratchTensors([], [])
    sorts = [index.new_empty(index.shape) for index in indices if index is not None for _ in range(SORTED_COPIES)]
    return ScratchTensors([], sorts)


def _embedding_backward(
    grad: torch.Tensor, indices: torch.Tensor, num_weights: int, *_: Any, **__: Any
) -> ScratchTensors:
    """Return the index tensors and the partial sums (`embedding_scratch`)."""
    import torch

    sizes, parts = embedding_scratch(indices.numel(), num_weights)
    if not parts:
        return ScratchTensors([], [])
    sums = grad.new_empty((parts, grad.shape[-1]), dtype=torch.float32)
    return ScratchTensors([indices.new_empty(size) for size in sizes], [sums])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
