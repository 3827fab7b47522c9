"""The bytes of a null GPU's tensor, which are in host memory."""

from __future__ import annotations

import ctypes

import torch

INTEGERS = {torch.bool, torch.int16, torch.int32, torch.int64}
MOST_INTEGERS = 2**26
"""Largest number of elements of a computed tensor of integers or booleans, such as an attention mask of 8,192²."""
MOST_KNOWN = 2**15
"""Largest number of elements of a tensor of floats, or of bytes, that is computed from known values."""
MOST_GUESSED = 2**10
"""Largest number of elements computed from guesses: losses, norms and the like."""


def is_real(tensor: torch.Tensor, *, known: bool) -> bool:
    """Return whether a tensor, known or guessed, is small enough to have real values."""
    if tensor.dtype in INTEGERS:
        return tensor.numel() <= MOST_INTEGERS
    return tensor.numel() <= (MOST_KNOWN if known else MOST_GUESSED)


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor of the same shape and dtype that shares the bytes of ``tensor``."""
    if tensor.device.type != "cuda":
        return tensor
    storage = tensor.untyped_storage()
    size = storage.nbytes() // tensor.element_size() * tensor.element_size()
    if size == 0 or tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    memory = (ctypes.c_char * size).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
