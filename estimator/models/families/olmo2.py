"""OLMo 2: norms follow each sublayer; queries and keys have one norm over all their heads."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig, norms, projections
from lorabench.estimator.models.config_fields.fields import PositiveFloat
from lorabench.estimator.models.spec import Linear, Weight


class Config(DecoderConfig, kw_only=True):
    """transformers' Olmo2Config."""

    model_type: ClassVar[str] = "olmo2"

    attention_bias: bool = False
    rms_norm_eps: PositiveFloat = 1e-5

    def attention(self) -> tuple[Linear, ...]:
        """Return the projections of one attention module."""
        return projections(self, qkv_bias=self.attention_bias, output_bias=self.attention_bias)

    def layer_weights(self) -> tuple[Weight, ...]:
        """Return the norms of one layer."""
        return (
            *norms(self.query_size, "self_attn.q_norm"),
            *norms(self.key_size, "self_attn.k_norm"),
            *norms(self.hidden_size, "post_attention_layernorm", "post_feedforward_layernorm"),
        )
