"""Mistral's dense models: Llama with a sliding window."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig
from lorabench.estimator.models.config_fields.fields import Size


class Config(DecoderConfig, kw_only=True):
    """transformers' MistralConfig."""

    model_type: ClassVar[str] = "mistral"

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    sliding_window: Size | None = 4096
