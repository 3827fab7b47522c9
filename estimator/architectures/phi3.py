"""Phi-3 to Phi-4: query, key and value in one projection, gate and up in another."""

from __future__ import annotations

from typing import ClassVar

from lorabench.estimator.architectures.decoder import DecoderConfig
from lorabench.estimator.architectures.fields import Dropout, Size
from lorabench.estimator.models import Linear


class Config(DecoderConfig, kw_only=True):
    """transformers' Phi3Config."""

    model_type: ClassVar[str] = "phi3"
    partial_rotary: ClassVar[bool] = True

    max_position_embeddings: Size = 4096
    original_max_position_embeddings: Size = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None
    resid_pdrop: Dropout = 0.0
    embd_pdrop: Dropout = 0.0

    def __post_init__(self) -> None:
        # Early checkpoints call the long-context kind su or yarn; transformers reads both as longrope.
        for settings in (self.rope_scaling, self.rope_parameters):
            for key in ("rope_type", "type"):
                if settings and settings.get(key) in ("su", "yarn"):
                    settings[key] = "longrope"
        super().__post_init__()
        assert self.rope_parameters is not None
        kind = self.rope_parameters["rope_type"]
        if kind not in ("default", "longrope"):
            raise ValueError(f"rope_type {kind}: phi3 models have default or longrope")
        factors = self._rotated() // 2
        for key in ("short_factor", "long_factor"):
            given = self.rope_parameters.get(key)
            if given is not None and (not isinstance(given, list) or len(given) != factors):
                raise ValueError(f"rope {key} must be a list of {factors} numbers, one for each rotated pair")

    def _rotated(self) -> int:
        assert self.rope_parameters is not None
        part = self.rope_parameters.get("partial_rotary_factor", 1.0)
        assert isinstance(part, int | float)
        return int(self.hidden_size // self.num_attention_heads * part)

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
