"""Llama 1 to 3, and the many models that kept its architecture."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig, gated_mlp, projections
from lorabench.estimator.models.spec import Linear


class Config(DecoderConfig, kw_only=True):
    """transformers' LlamaConfig."""

    model_type: ClassVar[str] = "llama"
    heads_divide_hidden: ClassVar[bool] = True

    attention_bias: bool = False
    mlp_bias: bool = False

    def attention(self) -> tuple[Linear, ...]:
        """Return the projections of one attention module."""
        return projections(self, qkv_bias=self.attention_bias, output_bias=self.attention_bias)

    def feed_forward(self) -> tuple[Linear, ...]:
        """Return the linear layers of one feed-forward module."""
        return gated_mlp(self.hidden_size, self.intermediate_size, bias=self.mlp_bias)
