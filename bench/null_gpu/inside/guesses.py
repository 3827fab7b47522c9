"""Plausible values in place of results that no kernel computes, so that programs continue normally.

Floats are 1, which is positive and finite. Choices among many (a router's experts, the most likely token, an order)
are spread evenly. Nothing is NaN or infinite. All other values are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

PLAUSIBLE = 1.0


def evenly(shape: torch.Size, dim: int, choices: int) -> torch.Tensor:
    """Return indices of ``shape`` below ``choices``: consecutive along ``dim``, and continuing from row to row."""
    if not shape:
        return torch.zeros((), dtype=torch.int64)
    moved = list(shape)
    chosen = moved.pop(dim)
    rows = torch.arange(max(1, torch.Size(moved).numel())).unsqueeze(1) * chosen + torch.arange(chosen)
    return (rows % max(1, choices)).reshape([*moved, chosen]).movedim(-1, dim)


def _topk(values: torch.Tensor, k: int, dim: int = -1, *_: Any, **__: Any) -> torch.Tensor:
    shape = list(values.shape)
    if shape:
        shape[dim] = k
    return evenly(torch.Size(shape), dim, values.shape[dim] if values.dim() else 1)


def _order(values: torch.Tensor, dim: int = -1, *_: Any, **__: Any) -> torch.Tensor:
    if not values.dim():
        return torch.zeros((), dtype=torch.int64)
    one_row = torch.arange(values.shape[dim]).reshape(
        [-1 if each == dim % values.dim() else 1 for each in range(values.dim())]
    )
    return one_row.expand(values.shape)


def _stable_order(values: torch.Tensor, *_: Any, dim: int = -1, **__: Any) -> torch.Tensor:
    return _order(values, dim)


def _extreme(values: torch.Tensor, dim: int | None = None, keepdim: bool = False, *_: Any, **__: Any) -> torch.Tensor:
    if dim is None or not values.dim():
        return torch.zeros((), dtype=torch.int64)
    shape = list(values.shape)
    shape[dim] = 1
    found = evenly(torch.Size(shape), dim, values.shape[dim])
    return found if keepdim else found.squeeze(dim)


def _drawn(weights: torch.Tensor, count: int, *_: Any, **__: Any) -> torch.Tensor:
    return evenly(torch.Size([*weights.shape[:-1], count]), -1, weights.shape[-1])


CHOICES: dict[Any, Callable[..., torch.Tensor]] = {
    aten.topk.default: _topk,
    aten.sort.default: _order,
    aten.sort.stable: _stable_order,
    aten.argsort.default: _order,
    aten.argmax.default: _extreme,
    aten.argmin.default: _extreme,
    aten.max.dim: _extreme,
    aten.min.dim: _extreme,
    aten.multinomial.default: _drawn,
}
"""Operation → function of its arguments that returns the guessed indices."""
_FINITE = {
    aten.isfinite.default: True,
    aten.isnan.default: False,
    aten.isinf.default: False,
    aten.isposinf.default: False,
    aten.isneginf.default: False,
}
_EQUAL = {aten.eq.Tensor: True, aten.ne.Tensor: False, aten.eq.Scalar: True, aten.ne.Scalar: False}


def answer_if_finite(func: Any, args: Any) -> bool | None:
    """Return the result of ``func`` for finite numbers if it only tests finiteness, else None.

    Losses and gradients are assumed to be finite, so the result counts as known. torch runs `torch.isfinite` as a
    comparison of numbers with themselves, and of their magnitudes with infinity.
    """
    if func in _FINITE:
        return _FINITE[func]
    if func in _EQUAL and args[0] is args[1]:
        return _EQUAL[func]
    if func in _EQUAL and isinstance(args[1], float) and not math.isfinite(args[1]):
        return not _EQUAL[func]
    return None
