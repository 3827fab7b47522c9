"""GPT-NeoX and Pythia: attention and feed-forward in parallel, partial rotary positions."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from lorabench.estimator.models.config_fields.decoder import NOT_TOKENS, norms
from lorabench.estimator.models.config_fields.fields import (
    Activation,
    Dropout,
    Fraction,
    LayerCount,
    PositiveFloat,
    Size,
)
from lorabench.estimator.models.config_fields.rotary import Rotary, rotary_parameters
from lorabench.estimator.models.spec import Layers, Linear, ModelSpec, Weight


class Config(Struct, kw_only=True):
    """transformers' GPTNeoXConfig, which has its own names for the rotary settings."""

    model_type: ClassVar[str] = "gpt_neox"

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: LayerCount
    num_attention_heads: Size
    hidden_act: Activation = "gelu"
    max_position_embeddings: Size = 2048
    attention_dropout: Dropout = 0.0
    hidden_dropout: Dropout = 0.0
    attention_bias: bool = True
    layer_norm_eps: PositiveFloat = 1e-5
    initializer_range: Fraction = 0.02
    use_parallel_residual: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: Rotary | None = None
    rope_scaling: Rotary | None = None
    rotary_emb_base: PositiveFloat | None = None
    rotary_pct: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        self.rope_parameters = rotary_parameters(
            self.rope_scaling,
            self.rope_parameters,
            theta=self.rotary_emb_base or 10_000.0,
            rotated=self.rotary_pct or 0.25,
            head_dim=self.hidden_size // self.num_attention_heads,
            part_allowed=True,
        )

    def config(self) -> dict[str, Any]:
        """Return the config with every default filled in and the rotary settings in transformers 5's spelling."""
        fields = msgspec.to_builtins(self)
        for older in ("rope_scaling", "rotary_emb_base", "rotary_pct"):
            del fields[older]
        return {"model_type": self.model_type, **fields, **NOT_TOKENS}

    def spec(self, name: str) -> ModelSpec:
        """Return the shapes of the model."""
        hidden, inner, bias = self.hidden_size, self.intermediate_size, self.attention_bias
        layer = (
            Linear("attention.query_key_value", hidden, 3 * hidden, "attention", bias=bias),
            Linear("attention.dense", hidden, hidden, "attention", bias=bias),
            Linear("mlp.dense_h_to_4h", hidden, inner, "feed_forward", bias=True),
            Linear("mlp.dense_4h_to_h", inner, hidden, "feed_forward", bias=True),
        )
        return ModelSpec(
            name=name,
            model_type=self.model_type,
            config=self.config(),
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            head_dim=hidden // self.num_attention_heads,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            tie_word_embeddings=self.tie_word_embeddings,
            embeddings=(Weight("gpt_neox.embed_in.weight", (self.vocab_size, hidden), "embedding"),),
            layers=(
                Layers(
                    self.num_hidden_layers,
                    layer,
                    norms(hidden, "input_layernorm", "post_attention_layernorm", bias=True),
                ),
            ),
            final_norm=norms(hidden, "gpt_neox.final_layer_norm", bias=True),
            head=Linear("lm_head", hidden, self.vocab_size, "head"),
            layers_path="gpt_neox.layers",
        )
