"""The kernel that scaled_dot_product_attention selects on a GPU.

As read in torch 2.13 (`sdp_utils.cpp`), it is the first of these that supports dtype, heads, mask and compute
capability: flash attention, the memory-efficient kernel, the math kernel. On Hopper and on data-centre Blackwell, torch
prefers cuDNN's kernel (`takes_cudnn`), whose peak is about that of flash attention.
"""

from __future__ import annotations

from typing import Literal

SdpaKernel = Literal["flash", "efficient", "math"]

WIDEST_FLASH_HEAD = 256
"""Largest head_dim of flash attention."""
WIDEST_HEAD_OF_LITTLE_SHARED_MEMORY = 192
"""GPUs with less shared memory than an A100 have no backward of flash attention for a head_dim above this, up to
`NARROWEST_SPLIT_HEAD`. For a larger head_dim they have it only without dropout."""
NARROWEST_SPLIT_HEAD = 224
WIDEST_CUDNN_HEAD = {(9, 0): 256, (10, 0): 128}
"""By compute capability (`check_cudnn_tensor_shapes`)."""
UNKNOWN = (8, 0)
"""Compute capability to assume for a GPU whose own is not known."""


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
    """Return the kernel for training with queries (B, heads, S, head_dim) in ``dtype``.

    Keys are (B, kv_heads, S, head_dim), values (B, kv_heads, S, value_dim). ``compute_capability`` is that of `Device`;
    None and AMD's targets mean `UNKNOWN`.
    """
    capability = _numbers(compute_capability)
    if not masked and head_dim == value_dim and _flash_takes(dtype, head_dim, dropout, capability):
        return "flash"
    if heads == kv_heads and all(_efficient_takes(dtype, width, capability) for width in (head_dim, value_dim)):
        return "efficient"
    return "math"


def takes_cudnn(dtype: str, head_dim: int, compute_capability: str | None) -> bool:
    """Return whether cuDNN's kernel is taken instead of flash attention or the efficient kernel, masked or not.

    torch prefers it since cuDNN 9.15.1, on these GPUs only (`check_prefer_cudnn_attention`).
    """
    widest = WIDEST_CUDNN_HEAD.get(_numbers(compute_capability))
    return widest is not None and dtype in ("float16", "bfloat16") and head_dim <= widest and head_dim % 8 == 0


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
    # Tensor cores require rows of 16 bytes. Before Ampere float32 does not run on them.
    alignment = 8 if dtype in ("float16", "bfloat16") else 4 if capability >= (8, 0) else 1
    return head_dim % alignment == 0


def _numbers(compute_capability: str | None) -> tuple[int, int]:
    if compute_capability is None or compute_capability.startswith("gfx"):
        return UNKNOWN
    major, _, minor = compute_capability.partition(".")
    return int(major), int(minor or 0)
