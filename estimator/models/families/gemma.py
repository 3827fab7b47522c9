"""Gemma 1: wide heads, a tied vocabulary of 256,000, GELU gates."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig, projections
from lorabench.estimator.models.config_fields.fields import Activation, Size
from lorabench.estimator.models.spec import Linear


class Config(DecoderConfig, kw_only=True):
    """transformers' GemmaConfig."""

    model_type: ClassVar[str] = "gemma"

    num_key_value_heads: Size | None = 16
    head_dim: Size | None = 256
    hidden_act: Activation = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 8192
    tie_word_embeddings: bool = True
    attention_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_act == "gelu":
            # The first release wrote gelu for its tanh approximation, and transformers reads it as that.
            self.hidden_act = "gelu_pytorch_tanh"

    def attention(self) -> tuple[Linear, ...]:
        """Return the projections of one attention module."""
        return projections(self, qkv_bias=self.attention_bias, output_bias=self.attention_bias)
