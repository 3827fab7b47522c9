"""Printing of tensors from the host: while torch prints, it disables the mode that gives them their values."""

from __future__ import annotations

from typing import Any

import torch

from lorabench.bench.null_gpu.inside.host_views import host_view


def print_from_the_host() -> None:
    """Make torch print tensors on the device as it prints tensors on the host."""
    printing: Any = torch._tensor_str
    text_of = printing._tensor_str

    def text_of_host_view(tensor: torch.Tensor, indent: int) -> str:
        plain = type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__ and tensor.layout == torch.strided
        on_device = plain and tensor.device.type == "cuda"
        return str(text_of(host_view(tensor.detach()) if on_device else tensor, indent))

    printing._tensor_str = text_of_host_view
