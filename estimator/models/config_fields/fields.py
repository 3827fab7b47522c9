"""The fields of a config.json: their types and their ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

MOST_LAYERS = 2**10
"""Eight times as many as the deepest model of the catalogue has."""
Size = Annotated[int, Meta(ge=1, le=2**24)]
"""A width, a vocabulary, a number of positions. The bound is far above any real model and keeps sums exact."""
LayerCount = Annotated[int, Meta(ge=1, le=MOST_LAYERS)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
Activation = Literal["silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu"]
LayerType = Literal["full_attention", "sliding_attention"]


def layer_types(
    given: list[LayerType] | None, *, layers: int, sliding_window: int | None, default: list[LayerType]
) -> list[LayerType]:
    """Return each layer's kind of attention: ``given`` by the config, or else ``default``.

    Raises:
        ValueError: the number of entries is not ``layers``, or a sliding layer has no window.
    """
    kinds = default if given is None else given
    if len(kinds) != layers:
        raise ValueError(f"layer_types has {len(kinds)} entries, but num_hidden_layers is {layers}")
    if "sliding_attention" in kinds and sliding_window is None:
        raise ValueError("layer_types has sliding_attention, but there is no sliding_window")
    return kinds
