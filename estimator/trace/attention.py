"""The kernels of scaled_dot_product_attention for meta tensors: torch would not select the GPU's kernel for them.

`devices.attention_kernel` selects the kernel, for the trace and for the closed form. The operations around the kernels
are those of torch 2.13 (`attention.cpp`; for the CPU, `sdp_utils_cpp.cpp`).

It is not known whether cuDNN's own plans, whose source is closed, request more than cuDNN's frontend does
(`scaled_dot_product_flash_attention.h`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabench.estimator.devices.attention_kernel import SdpaKernel, sdpa_kernel

if TYPE_CHECKING:
    import torch

MASK_ALIGNMENT = 16
"""The efficient kernel requires the mask's rows to be padded to a multiple of this (`pad_bias`)."""


def cuda_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    compute_capability: str | None,
) -> torch.Tensor:
    """Return scaled_dot_product_attention, (batch, heads, length, head_dim), by the kernel that CUDA selects.

    ``query`` is (batch, heads, length, head_dim), ``key`` and ``value`` (batch, kv_heads, length, head_dim). The math
    kernel consists of separate operators in float32, with the whole matrix of scores.
    """
    import torch

    kernel = _kernel(
        query, key, value, masked=attn_mask is not None, dropout=dropout_p, compute_capability=compute_capability
    )
    if kernel == "cudnn":
        mask = _additive(attn_mask, query.dtype)
        attended: torch.Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, mask, True, dropout_p, is_causal, scale=scale
        )[0]
        return attended
    if kernel == "flash":
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if kernel == "efficient":
        mask = _efficient_mask(attn_mask, query, key)
        output: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, True, dropout_p, is_causal, scale=scale
        )[0]
        return output
    return _math(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)[0]


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
    """Return scaled_dot_product_attention, in ``query``'s shape, as on a CPU: its flash kernel takes masks, no dropout.

    Shapes: as in `cuda_attention`.
    """
    import torch

    if dropout_p == 0 and query.shape[-1] == key.shape[-1] == value.shape[-1]:
        output: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=_additive(attn_mask, query.dtype), scale=scale
        )[0]
        return output
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    masked: bool,
    dropout: float,
    compute_capability: str | None,
) -> SdpaKernel:
    if query.dim() != 4 or query.shape[-1] != key.shape[-1]:
        return "math"
    return sdpa_kernel(
        dtype=_name(query.dtype),
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        heads=query.shape[1],
        kv_heads=key.shape[1],
        masked=masked,
        dropout=dropout,
        compute_capability=compute_capability,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float, is_causal: bool, scale: float | None
) -> torch.Tensor:
    """Return flash attention's output, in ``query``'s shape. It pads head_dim to a multiple of 8 (`pad_last_dim`)."""
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


def _math(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the probabilities of `_scaled_dot_product_attention_math`, by its operators.

    On meta under a dispatch mode, torch's own would add the mask out of place, and use a float mask for dropout.
    """
    import torch

    half = query.dtype in (torch.float16, torch.bfloat16)
    # C++ variables live until the function returns.
    query_32, key_32, value_32 = (tensor.float() if half else tensor for tensor in (query, key, value))
    root = abs(query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    scaled = query_32 * root
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scaled.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    keys, values = key_32, value_32
    shared_by = query.shape[-3] // key.shape[-3]
    if enable_gqa and shared_by > 1:  # without it, matmul expands a single key head
        keys, values = keys.repeat_interleave(shared_by, -3), values.repeat_interleave(shared_by, -3)
    attention = torch.matmul(scaled, keys.transpose(-2, -1) * root)
    if mask is not None:
        attention.add_(mask)
    attention = torch.ops.aten._safe_softmax(attention, -1)
    if dropout_p > 0:
        attention = torch.native_dropout(attention, dropout_p, True)[0]
    # The kernel returns the probabilities too, and its caller drops them.
    return torch.matmul(attention, values).to(query.dtype), attention.to(query.dtype)


def _efficient_mask(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """Return the mask in the format of the efficient kernel: (batch, heads, length, length), additive, rows padded."""
    from torch.nn.functional import pad

    mask = _additive(mask, query.dtype)
    if mask is None:
        return None
    columns = mask.shape[-1]
    if columns % MASK_ALIGNMENT:
        mask = pad(mask, (0, -columns % MASK_ALIGNMENT))[..., :columns]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return an additive mask, in the mask's shape. A boolean one is converted to a new tensor in ``dtype``.

    The source is `convert_boolean_attn_mask` of `attention.cpp`.
    """
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
    """Replace ``flash_attn_func`` of the package flash_attn by torch's flash attention: both run the same kernels.

    ``query`` is (batch, length, heads, head_dim), ``key`` and ``value`` (batch, length, kv_heads, head_dim). The kernel
    itself applies sliding windows and soft-capping, which take no memory.
    """
    del window_size, softcap, deterministic
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return _flash(query, key, value, dropout_p, causal, softmax_scale).transpose(1, 2)
