"""Gemma 2: norms before and after each sublayer, a sliding window in every other layer, soft-capped logits."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig, norms, projections
from lorabench.estimator.models.config_fields.fields import Activation, LayerType, PositiveFloat, Size, layer_types
from lorabench.estimator.models.spec import Linear, Weight


class Config(DecoderConfig, kw_only=True, rename={"hidden_act": "hidden_activation"}):
    """transformers' Gemma2Config, which names the activation ``hidden_activation``."""

    model_type: ClassVar[str] = "gemma2"
    heads_divide_hidden: ClassVar[bool] = True

    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 256
    hidden_act: Activation = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 8192
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    query_pre_attn_scalar: Size = 256
    sliding_window: Size | None = 4096
    layer_types: list[LayerType] | None = None
    final_logit_softcapping: PositiveFloat | None = 30.0
    attn_logit_softcapping: PositiveFloat | None = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layer_types = layer_types(
            self.layer_types,
            layers=self.num_hidden_layers,
            sliding_window=self.sliding_window,
            default=["full_attention" if i % 2 else "sliding_attention" for i in range(self.num_hidden_layers)],
        )

    def attention(self) -> tuple[Linear, ...]:
        """Return the projections of one attention module."""
        return projections(self, qkv_bias=self.attention_bias, output_bias=self.attention_bias)

    def layer_weights(self) -> tuple[Weight, ...]:
        """Return the four norms of one layer."""
        return super().layer_weights() + norms(
            self.hidden_size, "pre_feedforward_layernorm", "post_feedforward_layernorm"
        )
