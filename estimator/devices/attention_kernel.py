"""Which kernel scaled_dot_product_attention takes on a GPU.

As read in torch 2.13 (`sdp_utils.cpp`): the first of flash attention, the efficient kernel and single operators that
takes the dtype, the heads and the mask on a GPU of that compute capability. On Hopper and the Blackwell of data centres
torch asks cuDNN's kernel first, which takes what flash attention takes and holds as much.
"""

from __future__ import annotations

from typing import Literal

SdpaKernel = Literal["flash", "efficient", "math"]

WIDEST_FLASH_HEAD = 256
"""Widest head that flash attention takes."""
WIDEST_HEAD_OF_LITTLE_SHARED_MEMORY = 192
"""GPUs with less shared memory than an A100 run no backward pass of flash attention for heads from here to
`NARROWEST_SPLIT_HEAD`, nor of wider heads with dropout."""
NARROWEST_SPLIT_HEAD = 224
UNKNOWN = (8, 0)
"""What a GPU is taken for whose compute capability is not known."""


def sdpa_kernel(
    *,
    dtype: str,
    head_dim: int,
    value_dim: int,
    heads: int,
    kv_heads: int,
    masked: bool,
    dropout: float,
    compute_capability: str | None,
) -> SdpaKernel:
    """Return the kernel for queries of ``heads`` heads of ``head_dim`` features in ``dtype``, which need a gradient.

    Keys and values have ``kv_heads``, and each head of the values ``value_dim`` features. ``compute_capability`` is
    that of `Device`; None, and AMD's targets, stand for a GPU since the A100.
    """
    capability = _numbers(compute_capability)
    if not masked and head_dim == value_dim and _flash_takes(dtype, head_dim, dropout, capability):
        return "flash"
    if heads == kv_heads and all(_efficient_takes(dtype, width, capability) for width in (head_dim, value_dim)):
        return "efficient"
    return "math"


def _flash_takes(dtype: str, head_dim: int, dropout: float, capability: tuple[int, int]) -> bool:
    if capability < (8, 0) or dtype not in ("float16", "bfloat16") or head_dim > WIDEST_FLASH_HEAD:
        return False
    little_shared_memory = (8, 6) <= capability <= (8, 9) or capability >= (12, 0)
    if not little_shared_memory or head_dim <= WIDEST_HEAD_OF_LITTLE_SHARED_MEMORY:
        return True
    return head_dim > NARROWEST_SPLIT_HEAD and dropout == 0


def _efficient_takes(dtype: str, head_dim: int, capability: tuple[int, int]) -> bool:
    if dtype == "bfloat16" and capability < (8, 0):
        return False
    # Tensor cores want rows of 16 bytes; float32 has none before Ampere.
    alignment = 8 if dtype in ("float16", "bfloat16") else 4 if capability >= (8, 0) else 1
    return head_dim % alignment == 0


def _numbers(compute_capability: str | None) -> tuple[int, int]:
    if compute_capability is None or compute_capability.startswith("gfx"):
        return UNKNOWN
    major, _, minor = compute_capability.partition(".")
    return int(major), int(minor or 0)
