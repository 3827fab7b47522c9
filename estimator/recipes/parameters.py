"""The numbers of a recipe's parameters: total, trainable, quantised, and in adapters."""

from __future__ import annotations

from msgspec import Struct


class ParameterCounts(Struct, frozen=True, kw_only=True):
    """Numbers of elements of the model's tensors under one recipe."""

    total: int
    """All elements, including adapters."""
    trainable: int
    quantized: int
    """Weights stored in 4 bits."""
    adapter: int
    """Elements that peft adds: adapters, and copies of the modules to save."""
    by_part: dict[str, int]
    """Elements of the base model, by part."""
