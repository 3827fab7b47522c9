"""The kernel that scaled_dot_product_attention selects on a GPU.

As read in torch 2.13 (`sdp_utils.cpp`), it is the first of these that supports dtype, heads, mask, dropout and compute
capability: cuDNN's kernel, flash attention, the memory-efficient kernel, the math kernel. Before Hopper, on consumer
Blackwell and with a cuDNN up to 9.15, torch puts cuDNN's kernel last (`check_prefer_cudnn_attention`).
"""

from __future__ import annotations

from typing import Literal

SdpaKernel = Literal["cudnn", "flash", "efficient", "math"]

WIDEST_FLASH_HEAD = 256
"""Largest head_dim of flash attention."""
WIDEST_HEAD_OF_LITTLE_SHARED_MEMORY = 192
"""GPUs with less shared memory than an A100 have no backward of flash attention for a head_dim above this, up to
`NARROWEST_SPLIT_HEAD`. For a larger head_dim they have it only without dropout."""
NARROWEST_SPLIT_HEAD = 224
WIDEST_CUDNN_HEAD = {(9, 0): 256, (10, 0): 128, (10, 3): 128}
"""By compute capability, for GPUs on which torch prefers cuDNN (`check_cudnn_tensor_shapes`)."""
DEEPSEEK_HEAD = (192, 128)
"""DeepSeek's head_dim of keys and of values, which cuDNN supports on both."""
CUDNN_DROPOUT_STEPS = 16
"""cuDNN supports only multiples of 1/16 as dropout (`check_cudnn_dropout`)."""
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

    Keys are (B, kv_heads, S, head_dim), values (B, kv_heads, S, value_dim). ``compute_capability``: as in `Device`;
    None and AMD's targets mean `UNKNOWN`. S must be more than 1: a single token has other kernels.
    """
    capability = _numbers(compute_capability)
    if _cudnn_takes(dtype, head_dim, value_dim, dropout, capability):
        return "cudnn"
    if not masked and head_dim == value_dim and _flash_takes(dtype, head_dim, dropout, capability):
        return "flash"
    if heads == kv_heads and all(_efficient_takes(dtype, width, capability) for width in (head_dim, value_dim)):
        return "efficient"
    return "math"


def _cudnn_takes(dtype: str, head_dim: int, value_dim: int, dropout: float, capability: tuple[int, int]) -> bool:
    widest = WIDEST_CUDNN_HEAD.get(capability)
    if widest is None or dtype not in ("float16", "bfloat16") or dropout * CUDNN_DROPOUT_STEPS % 1:
        return False
    if head_dim % 8 or value_dim % 8:
        return False
    return max(head_dim, value_dim) <= widest or (head_dim, value_dim) == DEEPSEEK_HEAD


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
