"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig, experts
from lorabench.estimator.models.config_fields.fields import Dropout, PositiveFloat, Size
from lorabench.estimator.models.spec import Linear, Weight


class Config(DecoderConfig, kw_only=True):
    """transformers' MixtralConfig."""

    model_type: ClassVar[str] = "mixtral"
    default_theta: ClassVar[float] = 1_000_000.0

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: PositiveFloat = 1e-5
    sliding_window: Size | None = None
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: Dropout = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than "
                f"num_local_experts {self.num_local_experts}"
            )

    def feed_forward(self) -> tuple[Linear, ...]:
        """Return nothing: experts are stacked tensors, not linear layers."""
        return ()

    def layer_weights(self) -> tuple[Weight, ...]:
        """Return the norms, the router and the experts of one layer."""
        return super().layer_weights() + experts(self.hidden_size, self.intermediate_size, self.num_local_experts)
