"""The parts that most decoders share: rotary attention with grouped heads, a gated feed-forward network, RMS norms.

Each family is a subclass of `DecoderConfig`. Its fields are the keys of config.json that affect the shapes or the
training step, with the defaults of transformers' config class. All other keys (token ids, generation settings, the
checkpoint's dtype) are ignored.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from msgspec import Struct

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

NOT_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Text is packed, so there are no padding tokens. transformers' defaults may lie outside the vocabulary."""


class DecoderConfig(Struct, kw_only=True):
    """A decoder-only transformer with rotary positions. Its defaults have the shapes of Llama."""

    model_type: ClassVar[str]
    default_theta: ClassVar[float] = 10_000.0
    partial_rotary: ClassVar[bool] = False
    """Whether the family can rotate only a part of each head."""
    heads_divide_hidden: ClassVar[bool] = False
    """Whether transformers requires a hidden size divisible by the number of heads, even if head_dim is given."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: LayerCount
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: Activation = "silu"
    max_position_embeddings: Size = 2048
    initializer_range: Fraction = 0.02
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    attention_dropout: Dropout | None = 0.0
    rope_parameters: Rotary | None = None
    rope_scaling: Rotary | None = None
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.hidden_size % self.num_attention_heads and (self.head_dim is None or self.heads_divide_hidden):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.attention_dropout is None:
            self.attention_dropout = 0.0
        self.rope_parameters = rotary_parameters(
            self.rope_scaling,
            self.rope_parameters,
            theta=self.rope_theta or self.default_theta,
            rotated=self.partial_rotary_factor,
            head_dim=self.head_dim,
            part_allowed=self.partial_rotary,
        )

    @property
    def query_size(self) -> int:
        """Features of all query heads."""
        assert self.head_dim is not None
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Features of all key heads, and of all value heads."""
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        return self.num_key_value_heads * self.head_dim

    # Parts that a family may override. Names are the module paths of its classes in transformers.

    def attention(self) -> tuple[Linear, ...]:
        """Return the projections of one attention module."""
        return projections(self, qkv_bias=False, output_bias=False)

    def feed_forward(self) -> tuple[Linear, ...]:
        """Return the linear layers of one feed-forward module."""
        return gated_mlp(self.hidden_size, self.intermediate_size)

    def layer_weights(self) -> tuple[Weight, ...]:
        """Return the parameters of one layer outside its linear layers."""
        return norms(self.hidden_size, "input_layernorm", "post_attention_layernorm")

    def layers(self) -> tuple[Layers, ...]:
        """Return the groups of consecutive identical layers."""
        return (Layers(self.num_hidden_layers, self.attention() + self.feed_forward(), self.layer_weights()),)

    def config(self) -> dict[str, Any]:
        """Return the config with every default filled in and the rotary settings in transformers 5's spelling."""
        fields = msgspec.to_builtins(self)
        for older in ("rope_scaling", "rope_theta", "partial_rotary_factor"):
            del fields[older]
        return {"model_type": self.model_type, **fields, **NOT_TOKENS}

    def spec(self, name: str) -> ModelSpec:
        """Return the shapes of the model."""
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        return ModelSpec(
            name=name,
            model_type=self.model_type,
            config=self.config(),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            tie_word_embeddings=self.tie_word_embeddings,
            embeddings=(Weight("model.embed_tokens.weight", (self.vocab_size, self.hidden_size), "embedding"),),
            layers=self.layers(),
            final_norm=norms(self.hidden_size, "model.norm"),
            head=Linear("lm_head", self.hidden_size, self.vocab_size, "head"),
            layers_path="model.layers",
        )


def projections(config: DecoderConfig, *, qkv_bias: bool, output_bias: bool) -> tuple[Linear, ...]:
    """Return the query, key, value and output projections of grouped-query attention."""
    hidden, queries, keys = config.hidden_size, config.query_size, config.key_size
    return (
        Linear("self_attn.q_proj", hidden, queries, "attention", bias=qkv_bias),
        Linear("self_attn.k_proj", hidden, keys, "attention", bias=qkv_bias),
        Linear("self_attn.v_proj", hidden, keys, "attention", bias=qkv_bias),
        Linear("self_attn.o_proj", queries, hidden, "attention", bias=output_bias),
    )


def gated_mlp(hidden_size: int, intermediate_size: int, *, bias: bool = False) -> tuple[Linear, ...]:
    """Return the linear layers of down(act(gate(x)) · up(x))."""
    return (
        Linear("mlp.gate_proj", hidden_size, intermediate_size, "feed_forward", bias=bias),
        Linear("mlp.up_proj", hidden_size, intermediate_size, "feed_forward", bias=bias),
        Linear("mlp.down_proj", intermediate_size, hidden_size, "feed_forward", bias=bias),
    )


def experts(hidden_size: int, expert_size: int, count: int) -> tuple[Weight, ...]:
    """Return a router and ``count`` gated experts, which transformers 5 stacks into two tensors, not linear layers.

    Shapes: router (count, hidden_size), gate and up (count, 2 · expert_size, hidden_size), down (count, hidden_size,
    expert_size).
    """
    return (
        Weight("mlp.gate.weight", (count, hidden_size), "feed_forward"),
        Weight("mlp.experts.gate_up_proj", (count, 2 * expert_size, hidden_size), "feed_forward"),
        Weight("mlp.experts.down_proj", (count, hidden_size, expert_size), "feed_forward"),
    )


def norms(size: int, *paths: str, bias: bool = False) -> tuple[Weight, ...]:
    """Return the weights (and biases) of the norms at ``paths``, each over ``size`` features."""
    tensors = ("weight", "bias") if bias else ("weight",)
    return tuple(Weight(f"{path}.{tensor}", (size,), "norm") for path in paths for tensor in tensors)
