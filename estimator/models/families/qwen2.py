"""Qwen 1.5 to 2.5: Llama with biases on query, key and value, and an optional sliding window."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.models.config_fields.decoder import DecoderConfig, projections
from lorabench.estimator.models.config_fields.fields import LayerType, Size, layer_types
from lorabench.estimator.models.spec import Linear


class Config(DecoderConfig, kw_only=True):
    """transformers' Qwen2Config."""

    model_type: ClassVar[str] = "qwen2"

    num_key_value_heads: Size | None = 32
    max_position_embeddings: Size = 32768
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: int = 28
    layer_types: list[LayerType] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_sliding_window:
            self.sliding_window = None
        full = self.num_hidden_layers if self.sliding_window is None else self.max_window_layers
        self.layer_types = layer_types(
            self.layer_types,
            layers=self.num_hidden_layers,
            sliding_window=self.sliding_window,
            default=["sliding_attention" if i >= full else "full_attention" for i in range(self.num_hidden_layers)],
        )

    def attention(self) -> tuple[Linear, ...]:
        """Return the projections of one attention module."""
        return projections(self, qkv_bias=True, output_bias=False)
