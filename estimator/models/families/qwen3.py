"""Qwen 3, dense: norms of queries and keys per head, instead of Qwen 2's biases."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import norms, projections
from lorabench.estimator.models.config_fields.fields import Size
from lorabench.estimator.models.families import qwen2
from lorabench.estimator.models.spec import Linear, Weight


class Config(qwen2.Config, kw_only=True):
    """transformers' Qwen3Config."""

    model_type: ClassVar[str] = "qwen3"

    head_dim: Size | None = 128
    attention_bias: bool = False

    def attention(self) -> tuple[Linear, ...]:
        """Return the projections of one attention module."""
        return projections(self, qkv_bias=self.attention_bias, output_bias=self.attention_bias)

    def layer_weights(self) -> tuple[Weight, ...]:
        """Return the norms of one layer."""
        assert self.head_dim is not None
        return super().layer_weights() + norms(self.head_dim, "self_attn.q_norm", "self_attn.k_norm")
