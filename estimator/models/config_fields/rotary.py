"""Rotary position settings, which config.json may spell in two ways."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.models.config_fields.fields import PositiveFloat, Size

NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kind of rotary embedding → required settings (transformers' modeling_rope_utils)."""


class Rotary(Struct, kw_only=True, omit_defaults=True):
    """``rope_parameters`` in transformers 5, ``rope_scaling`` in transformers 4."""

    rope_type: str | None = None
    type: str | None = None
    """The older name of rope_type."""
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: PositiveFloat | None = None
    factor: PositiveFloat | None = None
    original_max_position_embeddings: Size | None = None
    attention_factor: PositiveFloat | None = None
    beta_fast: PositiveFloat | None = None
    beta_slow: PositiveFloat | None = None
    mscale: PositiveFloat | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: list[PositiveFloat] | None = None
    long_factor: list[PositiveFloat] | None = None
    low_freq_factor: PositiveFloat | None = None
    high_freq_factor: PositiveFloat | None = None


def rotary_parameters(
    scaling: Rotary | None,
    parameters: Rotary | None,
    *,
    theta: float,
    rotated: float | None,
    head_dim: int,
    part_allowed: bool,
) -> Rotary:
    """Return the settings in transformers 5's spelling.

    Args:
        scaling: ``rope_scaling`` of the config, which takes precedence over ``parameters``.
        parameters: ``rope_parameters`` of the config.
        theta: base of the frequencies if the settings have none.
        rotated: rotated share of each head if the settings have none; None for the whole head.
        head_dim: features of a head.
        part_allowed: whether the family can rotate only a part of each head.

    Raises:
        ValueError: the kind is unknown or lacks a required setting, or the share cannot be rotated.
    """
    given = next((settings for settings in (scaling, parameters) if settings not in (None, Rotary())), None) or Rotary()
    kind = given.rope_type or given.type or "default"
    if kind not in NEEDED:
        raise ValueError(f"rope_type {quoted(kind)} is not supported: the kinds are {', '.join(NEEDED)}")
    for needed in NEEDED[kind]:
        if getattr(given, needed) is None:
            raise ValueError(f"rope_type {kind} needs {needed}")
    part = given.partial_rotary_factor or rotated or 1
    if part > 1:
        raise ValueError(f"partial_rotary_factor {part:g} is above 1, the whole head")
    if part < 1 and not part_allowed:
        raise ValueError(f"partial_rotary_factor {part:g}: models of this type rotate the whole head")
    if part == 1 and head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd, but rotary positions rotate pairs")
    pairs = int(head_dim * part) // 2
    for name in ("short_factor", "long_factor"):
        factors = getattr(given, name)
        if factors is not None and len(factors) != pairs:
            raise ValueError(f"rope {name} has {len(factors)} numbers, but {pairs} pairs are rotated")
    return msgspec.structs.replace(
        given,
        rope_type=kind,
        type=None,
        rope_theta=given.rope_theta or theta,
        partial_rotary_factor=given.partial_rotary_factor or rotated,
    )
