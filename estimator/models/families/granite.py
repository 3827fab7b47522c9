"""IBM Granite 3, dense: Llama with constant multipliers, which change no shape."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.families import llama


class Config(llama.Config, kw_only=True):
    """transformers' GraniteConfig."""

    model_type: ClassVar[str] = "granite"
    heads_divide_hidden: ClassVar[bool] = False

    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
