"""GPT-2: learned positions, layer norms with biases, and Conv1D instead of linear layers."""

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
from lorabench.estimator.models.spec import Layers, Linear, ModelSpec, Weight


class Config(Struct, kw_only=True):
    """transformers' GPT2Config, which has its own names for the sizes."""

    model_type: ClassVar[str] = "gpt2"

    vocab_size: Size
    n_embd: Size
    n_layer: LayerCount
    n_head: Size
    n_positions: Size = 1024
    n_inner: Size | None = None
    activation_function: Activation = "gelu_new"
    resid_pdrop: Dropout = 0.1
    embd_pdrop: Dropout = 0.1
    attn_pdrop: Dropout = 0.1
    layer_norm_epsilon: PositiveFloat = 1e-5
    initializer_range: Fraction = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_inner is None:
            self.n_inner = 4 * self.n_embd
        if self.add_cross_attention:
            raise ValueError(
                "add_cross_attention makes it the decoder of an encoder-decoder, not a causal language model"
            )
        if self.reorder_and_upcast_attn:
            raise ValueError("reorder_and_upcast_attn computes attention in float32, which has no closed form here")

    def config(self) -> dict[str, Any]:
        """Return the config with every default filled in."""
        return {"model_type": self.model_type, **msgspec.structs.asdict(self), **NOT_TOKENS}

    def spec(self, name: str) -> ModelSpec:
        """Return the shapes of the model."""
        assert self.n_inner is not None
        hidden, inner = self.n_embd, self.n_inner
        layer = (
            Linear("attn.c_attn", hidden, 3 * hidden, "attention", bias=True, conv1d=True),
            Linear("attn.c_proj", hidden, hidden, "attention", bias=True, conv1d=True),
            Linear("mlp.c_fc", hidden, inner, "feed_forward", bias=True, conv1d=True),
            Linear("mlp.c_proj", inner, hidden, "feed_forward", bias=True, conv1d=True),
        )
        return ModelSpec(
            name=name,
            model_type=self.model_type,
            config=self.config(),
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=self.n_layer,
            num_attention_heads=self.n_head,
            num_key_value_heads=self.n_head,
            head_dim=hidden // self.n_head,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.n_positions,
            tie_word_embeddings=self.tie_word_embeddings,
            embeddings=(
                Weight("transformer.wte.weight", (self.vocab_size, hidden), "embedding"),
                Weight("transformer.wpe.weight", (self.n_positions, hidden), "embedding"),
            ),
            layers=(Layers(self.n_layer, layer, norms(hidden, "ln_1", "ln_2", bias=True)),),
            final_norm=norms(hidden, "transformer.ln_f", bias=True),
            head=Linear("lm_head", hidden, self.vocab_size, "head"),
            layers_path="transformer.h",
        )
