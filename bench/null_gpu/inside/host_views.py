"""The bytes of a device tensor, which lie in the host's memory."""

from __future__ import annotations

import ctypes

import torch

INTEGERS = {torch.bool, torch.int16, torch.int32, torch.int64}
MOST_INTEGERS = 2**26
"""Elements of a tensor of integers or booleans up to which it is computed: an attention mask of 8,192² is one."""
MOST_KNOWN = 2**15
"""Elements of a tensor of floats, or of bytes, up to which it is computed from values that are known."""
MOST_GUESSED = 2**10
"""Elements up to which it is from guesses: losses, norms and their like."""


def is_real(tensor: torch.Tensor, *, known: bool) -> bool:
    """Tell whether a tensor that is known, or guessed, is small enough to have real values."""
    if tensor.dtype in INTEGERS:
        return tensor.numel() <= MOST_INTEGERS
    return tensor.numel() <= (MOST_KNOWN if known else MOST_GUESSED)


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor over the same bytes as ``tensor``; what is written to one is read from the other."""
    if tensor.device.type != "cuda":
        return tensor
    storage = tensor.untyped_storage()
    size = storage.nbytes() // tensor.element_size() * tensor.element_size()
    if size == 0 or tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    memory = (ctypes.c_char * size).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
