"""The fields of a config.json: their types, their ranges, and the rotary settings in both of their spellings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

Size = Annotated[int, Meta(ge=1, le=2**24)]
"""A width, a vocabulary, a number of positions. The bound is far above any real model and keeps sums exact."""
LayerCount = Annotated[int, Meta(ge=1, le=2**14)]
Positive = Annotated[float, Meta(gt=0)]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
Activation = Literal["silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu"]
LayerType = Literal["full_attention", "sliding_attention"]
Rotary = dict[str, bool | int | float | str | list[float] | None]

ROTARY_SETTINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kind of rotary embedding → what it cannot do without (transformers' modeling_rope_utils)."""


def rotary_settings(
    settings: Rotary | None, scaling: Rotary | None, *, theta: float | None, default_theta: float
) -> dict[str, Any]:
    """Return the rotary settings as transformers 5 spells them (``rope_parameters``), from either spelling.

    transformers 4 wrote ``rope_theta`` beside ``rope_scaling``, whose kind was first called ``type``.

    Raises:
        ValueError: an unknown kind, or one without a setting that it needs.
    """
    rotary: dict[str, Any] = dict(scaling or settings or {})
    older_kind = rotary.pop("type", None)
    kind = rotary.setdefault("rope_type", older_kind or "default")
    if kind not in ROTARY_SETTINGS:
        raise ValueError(f"rope_type {kind!r} is not supported: the kinds are {', '.join(ROTARY_SETTINGS)}")
    for needed in ROTARY_SETTINGS[kind]:
        if rotary.get(needed) is None:
            raise ValueError(f"rope_type {kind} needs {needed}")
    if rotary.get("rope_theta") is None:
        rotary["rope_theta"] = default_theta if theta is None else theta
    if not isinstance(rotary["rope_theta"], int | float) or not rotary["rope_theta"] > 0:
        raise ValueError(f"rope_theta {rotary['rope_theta']!r} must be a number above 0")
    return rotary


def layer_types(
    given: list[LayerType] | None, *, layers: int, sliding_window: int | None, default: list[LayerType]
) -> list[LayerType]:
    """Return the kind of attention of each layer: what the config says, or else ``default``.

    Raises:
        ValueError: not one for each layer, or a sliding layer without a window.
    """
    kinds = default if given is None else given
    if len(kinds) != layers:
        raise ValueError(f"layer_types has {len(kinds)} entries, but num_hidden_layers is {layers}")
    if "sliding_attention" in kinds and sliding_window is None:
        raise ValueError("layer_types has sliding_attention, but there is no sliding_window")
    return kinds
