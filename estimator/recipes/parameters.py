"""The numbers of a recipe's parameters: total, trainable, quantised, and in adapters."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0, le=2**60)]
"""The bound is far above any model, and keeps ratios within floats."""


class ParameterCounts(Struct, frozen=True, kw_only=True):
    """Numbers of elements of the model's tensors under one recipe."""

    total: Count
    """All elements, including adapters."""
    trainable: Count
    quantized: Count
    """Weights stored in 4 bits."""
    adapter: Count
    """Elements that peft adds: adapters, and copies of the modules to save."""
    by_part: dict[str, Count]
    """Elements of the base model, by part."""
