"""How many parameters a recipe has: the model's, the adapters', those that train, those that are quantised."""

from __future__ import annotations

from msgspec import Struct


class ParameterCounts(Struct, frozen=True, kw_only=True):
    """Elements of the model's tensors under one recipe."""

    total: int
    """All of them, the adapters' included."""
    trainable: int
    quantized: int
    """Weights stored in 4 bits."""
    adapter: int
    """What peft adds: adapters, and copies of the modules to save."""
    by_part: dict[str, int]
    """The base model's, by part."""
