"""Which attention kernel scaled_dot_product_attention takes, written out for meta tensors, which would take none.

The rules are those of torch 2.13 (`sdp_utils.cpp` for CUDA, `sdp_utils_cpp.cpp` for the CPU, `attention.cpp` for what
is done around the kernels).

On Hopper and the Blackwell of data centres, with a cuDNN newer than 9.15, torch 2.13 asks cuDNN's kernel before flash
attention (unless TORCH_CUDNN_SDPA_DEPRIORITIZED is set), and with a mask before the efficient kernel. It is traced as
those. What it saves has the same sizes: queries, keys, values, output, one float32 for each row and head. Its backward
works in one allocation, of which cuDNN's frontend asks for the float32 accumulator of the query's gradient and the row
sums (`scaled_dot_product_flash_attention.h`), as flash attention does, without padding them. Whether cuDNN's own plans,
whose source is closed, ask for more, such as the gradients of expanded keys and values that flash attention holds, is
not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FLASH_HEAD_DIM = 256
"""Widest head that flash attention takes."""
MASK_ALIGNMENT = 16
"""The efficient kernel wants the mask's rows padded to a multiple of this."""


def cuda_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return what CUDA's scaled_dot_product_attention returns, from the kernel that CUDA takes.

    ``query`` is (batch, heads, length, head_dim), ``key`` and ``value`` (batch, kv_heads, length, head_dim).

    - Flash attention: 16-bit, no mask, heads up to 256 wide. It shares keys and values among heads by itself.
    - The efficient kernel: float32 or a mask, as many key heads as query heads.
    - Otherwise single operators in float32, with the whole matrix of scores.
    """
    import torch

    if attn_mask is None and _flash_takes(query, key, value, dropout_p):
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if _efficient_takes(query, key, value):
        mask = _efficient_mask(attn_mask, query, key)
        output: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, True, dropout_p, is_causal, scale=scale
        )[0]
        return output
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return what the CPU's scaled_dot_product_attention returns: its flash kernel takes masks, but no dropout."""
    import torch

    if dropout_p == 0 and query.shape[-1] == key.shape[-1] == value.shape[-1]:
        output: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=_additive(attn_mask, query.dtype), scale=scale
        )[0]
        return output
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _flash_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float) -> bool:
    import torch

    head_dim = query.shape[-1]
    if query.dtype not in (torch.float16, torch.bfloat16) or query.dim() != 4:
        return False
    if not head_dim == key.shape[-1] == value.shape[-1] <= FLASH_HEAD_DIM:
        return False
    # GPUs with little shared memory (8.6, 8.9, 12.0) run no backward pass for these.
    too_wide = 192 < head_dim <= 224 or (head_dim > 224 and dropout_p > 0)
    return not too_wide


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float, is_causal: bool, scale: float | None
) -> torch.Tensor:
    """Return flash attention's output; heads are padded to a multiple of 8 columns."""
    import torch
    from torch.nn.functional import pad

    head_dim = query.shape[-1]
    missing = -head_dim % 8
    if missing:
        scale = head_dim**-0.5 if scale is None else scale
        query, key, value = (pad(tensor, (0, missing)) for tensor in (query, key, value))
    output: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    return output[..., :head_dim] if missing else output


def _efficient_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    import torch

    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32) or query.dim() != 4:
        return False
    if not query.shape[1] == key.shape[1] == value.shape[1] or query.shape[-1] != key.shape[-1]:
        return False
    alignment = 4 if query.dtype == torch.float32 else 8
    return query.shape[-1] % alignment == 0 and value.shape[-1] % alignment == 0


def _efficient_mask(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """Return ``mask`` as the efficient kernel wants it: (batch, heads, length, length), additive, rows padded."""
    from torch.nn.functional import pad

    mask = _additive(mask, query.dtype)
    if mask is None:
        return None
    columns = mask.shape[-1]
    if columns % MASK_ALIGNMENT:
        mask = pad(mask, (0, -columns % MASK_ALIGNMENT))[..., :columns]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return a mask to add to the scores; a boolean one becomes a tensor of its own, in ``dtype``."""
    import torch

    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=dtype, device=mask.device))


def flash_attention_2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """Stand in for the function of the package flash_attn, whose kernels are torch's flash attention.

    ``query`` is (batch, length, heads, head_dim), ``key`` and ``value`` (batch, length, kv_heads, head_dim). Sliding
    windows and soft capping are done inside the kernel and take no memory.
    """
    del window_size, softcap, deterministic
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return _flash(query, key, value, dropout_p, causal, softmax_scale).transpose(1, 2)
