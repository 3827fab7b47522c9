"""A model's shapes, read from its Hugging Face config.json, without weights and without torch.

A `ModelSpec` lists every parameter that transformers would make, with the module that owns it. So parameters can be
counted by part, and each linear layer can be quantised or adapted. `families/` has one file for each family. For all
other families the shapes come from the model that transformers builds (`introspect`).
"""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

Part = Literal["embedding", "attention", "feed_forward", "norm", "head", "other"]
"""Only architectures without a file in `families` have the part "other"."""


class Linear(Struct, frozen=True):
    """A linear layer: weight (out_features, in_features), bias (out_features,) if any.

    bitsandbytes quantises most and peft's all-linear adapts them, except the head.
    """

    name: str
    """Path inside its layer, such as ``self_attn.q_proj``."""
    in_features: int
    out_features: int
    part: Part
    bias: bool = False
    conv1d: bool = False
    """Whether it is transformers' Conv1D (GPT-2), whose weight is stored transposed."""
    quantizable: bool = True
    """Whether bitsandbytes replaces it by a 4-bit layer. transformers leaves out classes of an architecture's own, the
    module of the model's last parameter, and modules that the architecture keeps in float32."""

    @property
    def parameters(self) -> int:
        """Weight and bias elements."""
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)


class Weight(Struct, frozen=True):
    """A parameter outside linear layers: an embedding table, a norm, a stack of experts, a router."""

    name: str
    shape: tuple[int, ...]
    part: Part

    @property
    def parameters(self) -> int:
        """Elements."""
        return prod(self.shape)


ADAPTED = ("gate.weight", "gate_up_proj", "down_proj")
"""Ends of the names of routers and stacks of experts that peft adapts (its `_MOE_TARGET_MODULE_MAPPING`)."""


class Buffer(Struct, frozen=True):
    """A tensor of a layer that is no parameter, such as GPT-Neo's causal mask."""

    name: str
    shape: tuple[int, ...]
    bytes_per_element: int

    @property
    def bytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * self.bytes_per_element


class Layers(Struct, frozen=True):
    """Consecutive identical decoder layers."""

    count: int
    linears: tuple[Linear, ...]
    weights: tuple[Weight, ...]
    kind: int | None = None
    """Which of the architecture's kinds of layers they are, if it was recorded (`recordings`)."""
    windowed: bool = False
    """Whether attention has a sliding window, if the architecture was recorded."""
    adapts_experts: bool = True
    """Whether peft adapts its router and experts under all-linear."""
    buffers: tuple[Buffer, ...] = ()

    @property
    def quantizable(self) -> list[Linear]:
        """The linear layers that bitsandbytes replaces by 4-bit layers."""
        return [linear for linear in self.linears if linear.quantizable]

    @property
    def experts(self) -> list[Weight]:
        """The router and the stacks of experts of each layer; empty without experts."""
        return [weight for weight in self.weights if weight.part == "feed_forward"]

    @property
    def adapted_experts(self) -> list[Weight]:
        """Those of `experts` that peft adapts under all-linear."""
        return [weight for weight in self.experts if self.adapts_experts and weight.name.endswith(ADAPTED)]


class Stored(Struct, frozen=True):
    """How the weights of a quantised checkpoint are stored. Adapters can train on them, and they themselves cannot."""

    what: str
    """In words: ``4 bits by bitsandbytes``."""
    options: dict[str, Any]
    """The recipe options that follow."""


class ModelSpec(Struct, frozen=True, dict=True):
    """The shapes of one causal language model."""

    name: str
    """Catalogue name (Hub id), or the source of the config."""
    model_type: str
    """transformers' name of the architecture."""
    config: dict[str, Any]
    """The keys of config.json that affect the shapes or the training step, with every default filled in. transformers'
    ``AutoConfig.for_model`` builds the model from them."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    """Longest supported sequence; 0 if the config names none."""
    tie_word_embeddings: bool
    embeddings: tuple[Weight, ...]
    layers: tuple[Layers, ...]
    final_norm: tuple[Weight, ...]
    head: Linear
    """The output projection. With tied embeddings its weight is the embedding's and does not count."""
    layers_path: str
    """Path of the list of layers, such as ``model.layers``. A layer's tensors are at ``<layers_path>.<index>.<name>``;
    the names of all other tensors are whole paths."""
    outside: tuple[Linear, ...] = ()
    """Linear layers outside the decoder layers, except the head, such as OPT-350m's ``model.decoder.project_in``. Their
    names are whole paths."""
    has_sdpa: bool = True
    """Whether transformers supports sdpa for it."""
    longest_closed_form: int = 0
    """Longest sequence for which its closed form holds; 0 if it holds for any."""
    scan_chunk: int = 0
    """Tokens in a chunk of its scans, to which they pad the sequence; 0 if it has none."""
    scan_loops: bool = False
    """Whether its scans run their chunks one after the other, so that a step has as many operations as chunks."""
    stored: Stored | None = None
    """How the checkpoint is quantised; None if it is not."""
    assumptions: tuple[str, ...] = ()
    """How an ambiguous name was resolved, one line each; empty for a unique name."""

    @cached_property
    def encoded_config(self) -> Raw:
        """`config` as JSON with sorted keys."""
        return Raw(msgspec.json.encode(self.config, order="sorted"))

    @cached_property
    def encoded(self) -> bytes:
        """All fields, for comparison: specs hold dictionaries, and so have no hash."""
        return msgspec.msgpack.encode(self)

    @cached_property
    def groups(self) -> tuple[Layers, ...]:
        """The decoder layers, and before them the linear layers outside, if there are any."""
        return (Layers(1, self.outside, ()), *self.layers) if self.outside else self.layers

    @cached_property
    def parameters_by_part(self) -> dict[Part, int]:
        """Elements by part of the model; they add up to `parameters`."""
        parts: dict[Part, int] = {"embedding": 0, "attention": 0, "feed_forward": 0, "norm": 0, "head": 0}
        for weight in (*self.embeddings, *self.final_norm):
            parts[weight.part] = parts.get(weight.part, 0) + weight.parameters
        for group in self.groups:
            tensors: list[Linear | Weight] = [*group.linears, *group.weights]
            for tensor in tensors:
                parts[tensor.part] = parts.get(tensor.part, 0) + group.count * tensor.parameters
        if self.tie_word_embeddings:
            parts["head"] += self.head.out_features if self.head.bias else 0
        else:
            parts["head"] += self.head.parameters
        return parts

    @cached_property
    def unquantizable(self) -> list[tuple[Linear, int]]:
        """Each kind of linear layer that bitsandbytes leaves as it is, with the number of layers that have it."""
        return [(linear, group.count) for group in self.groups for linear in group.linears if not linear.quantizable]

    @cached_property
    def adapts_experts(self) -> bool:
        """Whether peft adapts its stacks of experts under all-linear; false if it has none."""
        return any(group.adapted_experts for group in self.layers)

    @cached_property
    def learned_positions(self) -> bool:
        """Whether positions come from a learned table with ``max_position_embeddings`` rows."""
        return any("position" in table.name or ".wpe." in table.name for table in self.embeddings)

    @property
    def caps_scores(self) -> bool:
        """Whether a tanh caps the attention scores, as in Gemma 2."""
        return self.config.get("attn_logit_softcapping") is not None

    @cached_property
    def parameters(self) -> int:
        """All elements; tied ones count once."""
        return sum(self.parameters_by_part.values())

    @cached_property
    def linear_parameters(self) -> int:
        """Weight elements (no biases) of the linear layers that QLoRA quantises."""
        return sum(
            group.count * linear.in_features * linear.out_features
            for group in self.groups
            for linear in group.quantizable
        )
