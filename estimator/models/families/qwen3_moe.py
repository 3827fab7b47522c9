"""Qwen 3 with a mixture of experts in some layers, or in all."""

from __future__ import annotations

from itertools import groupby
from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig, experts, norms, projections
from lorabench.estimator.models.config_fields.fields import Size
from lorabench.estimator.models.spec import Layers, Linear, Weight


class Config(DecoderConfig, kw_only=True):
    """transformers' Qwen3MoeConfig."""

    model_type: ClassVar[str] = "qwen3_moe"

    num_key_value_heads: Size | None = 4
    max_position_embeddings: Size = 32768
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    moe_intermediate_size: Size = 768
    num_experts: Size = 128
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_sliding_window:
            self.sliding_window = None
        self.mlp_only_layers = self.mlp_only_layers or []
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than num_experts {self.num_experts}"
            )

    def attention(self) -> tuple[Linear, ...]:
        """Return the projections of one attention module."""
        return projections(self, qkv_bias=self.attention_bias, output_bias=self.attention_bias)

    def layer_weights(self) -> tuple[Weight, ...]:
        """Return the norms of one layer."""
        assert self.head_dim is not None
        return super().layer_weights() + norms(self.head_dim, "self_attn.q_norm", "self_attn.k_norm")

    def layers(self) -> tuple[Layers, ...]:
        """Return runs of dense and of sparse layers, in the model's order."""
        return tuple(
            self._sparse_layers(len(list(run))) if sparse else self._dense_layers(len(list(run)))
            for sparse, run in groupby(range(self.num_hidden_layers), key=self._is_sparse)
        )

    def _is_sparse(self, layer: int) -> bool:
        assert self.mlp_only_layers is not None
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    def _dense_layers(self, count: int) -> Layers:
        return Layers(count, self.attention() + self.feed_forward(), self.layer_weights())

    def _sparse_layers(self, count: int) -> Layers:
        stacked = experts(self.hidden_size, self.moe_intermediate_size, self.num_experts)
        return Layers(count, self.attention(), self.layer_weights() + stacked)
