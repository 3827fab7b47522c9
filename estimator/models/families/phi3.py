"""Phi-3 to Phi-4: query, key and value in one projection, gate and up in another."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig
from lorabench.estimator.models.config_fields.fields import Dropout, PositiveFloat, Size
from lorabench.estimator.models.spec import Linear


class Config(DecoderConfig, kw_only=True):
    """transformers' Phi3Config."""

    model_type: ClassVar[str] = "phi3"
    partial_rotary: ClassVar[bool] = True

    max_position_embeddings: Size = 4096
    original_max_position_embeddings: Size = 4096
    rms_norm_eps: PositiveFloat = 1e-5
    sliding_window: Size | None = None
    resid_pdrop: Dropout = 0.0
    embd_pdrop: Dropout = 0.0

    def __post_init__(self) -> None:
        for settings in (self.rope_scaling, self.rope_parameters):
            if settings is not None:
                # Early checkpoints call the long-context kind su or yarn; transformers reads both as longrope.
                kind = settings.rope_type or settings.type
                settings.rope_type = "longrope" if kind in ("su", "yarn") else kind
        super().__post_init__()
        assert self.rope_parameters is not None
        if self.rope_parameters.rope_type not in ("default", "longrope"):
            raise ValueError(f"rope_type {self.rope_parameters.rope_type}: phi3 models have default or longrope")

    def attention(self) -> tuple[Linear, ...]:
        """Return the two projections of one attention module."""
        return (
            Linear("self_attn.o_proj", self.query_size, self.hidden_size, "attention"),
            Linear("self_attn.qkv_proj", self.hidden_size, self.query_size + 2 * self.key_size, "attention"),
        )

    def feed_forward(self) -> tuple[Linear, ...]:
        """Return the two linear layers of one feed-forward module."""
        return (
            Linear("mlp.gate_up_proj", self.hidden_size, 2 * self.intermediate_size, "feed_forward"),
            Linear("mlp.down_proj", self.intermediate_size, self.hidden_size, "feed_forward"),
        )
