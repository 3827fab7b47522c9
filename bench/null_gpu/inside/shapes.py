"""Results whose shape depends on values. A kernel counts them, and the host reads the count; here, the host counts."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lorabench.bench.null_gpu.inside.host_views import host_view

aten = torch.ops.aten

INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
    aten._index_put_impl_.default,
}
"""Operations with indices as second argument; a mask among them selects the positions at which it is true."""
MASKED = {aten.masked_select.default, aten.masked_scatter_backward.default}
"""Operations that select from the first argument by a mask, the second; the latter pads to a given shape."""


def masks_among(indices: Any) -> list[torch.Tensor]:
    """Return those of ``indices`` that are masks on the device."""
    return [
        index
        for index in indices
        if isinstance(index, torch.Tensor) and index.device.type == "cuda" and index.dtype in (torch.bool, torch.uint8)
    ]


def counts_of(func: Any, args: Any) -> list[int]:
    """Return the counts that the kernels of ``func`` would make, in the order of the host's reads."""
    if func in INDEXED:
        return [int(torch.count_nonzero(host_view(mask))) for mask in masks_among(args[1])]
    if func in MASKED:
        _, mask = torch.broadcast_tensors(*args[:2])  # type: ignore[no-untyped-call]
        return [int(torch.count_nonzero(host_view(mask)))]
    if func is aten.nonzero.default:
        return [int(torch.count_nonzero(host_view(args[0])))]
    return []


@contextmanager
def answering(counts: list[int]) -> Iterator[None]:
    """Make this thread's next reads of small numbers from the device return ``counts``, one by one."""
    library = ctypes.CDLL(None)
    for count in counts:
        library.null_gpu_answer(ctypes.c_int64(count))
    try:
        yield
    finally:
        library.null_gpu_forget_answers()


def on_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy on ``device`` of a host tensor."""
    made = torch.empty(values.shape, dtype=values.dtype, device=device)
    host_view(made).copy_(values)
    return made
