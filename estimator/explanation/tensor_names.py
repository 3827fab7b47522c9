"""What people call the tensors of a step, and which library makes them."""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.closed_form.decoders import LAYERS
from lorabench.estimator.closed_form.itemised import HELD, Item
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import Recipe

_PLACES = {
    "Modules._base": "linear",
    "Modules._adapted": "linear",
    "Modules._adapted_4bit": "linear",
    "Modules._adapter": "adapter",
    "Modules.rms_norm": "norm",
    "Modules.gemma_norm": "norm",
    "Modules.layer_norm": "norm",
    "Modules.rotate": "rotary positions",
    "Modules.rotate_part": "rotary positions",
    "Modules._rotate_half": "rotary positions",
    "Modules.attention": "attention",
    "Modules._fused": "attention",
    "Modules._eager": "attention",
    "Modules._math": "attention",
    "fused_attention": "attention",
    "neox_attention": "attention",
    "grouped_attention": "attention",
    "Modules.gated_mlp": "feed-forward",
    "fused_mlp": "feed-forward",
    "neox_mlp": "feed-forward",
    "gelu_new": "feed-forward",
    "sparse_mlp": "experts",
    "_route": "router",
    "_top": "router",
    "_normed": "router",
    "Router.__init__": "adapted router",
    "Router.weight": "adapted router",
    "Stack.__init__": "adapted experts",
    "Stack.weight": "adapted experts",
    "_by_expert": "adapted experts",
    "_experts": "experts",
    "_gather": "experts",
    "_grouped": "experts",
    "_weight": "experts",
    "_sum_of_experts": "experts",
    "rotary_tables": "rotary tables",
    "Masks.__init__": "attention mask",
    "_Step._hidden_states": "embedding",
    "_Step._forward": "last hidden state",
    "_Step._loss": "loss",
    "_Step.run": "loss",
    **{layer.__name__: "residual stream" for layer in LAYERS.values()},
}
"""Function of the closed form → the part of the model that it is."""

STATISTICS = 2
"""Columns of what a layer norm keeps of each row: mean and deviation."""
_WITH_OWN_NAME = ("linear", "adapter", "norm")

_SOURCES = {
    "adapter": "peft: A (r, in) and B (out, r) beside the base layer",
    "norm": "transformers: norms compute in float32",
    "rotary positions": "transformers: apply_rotary_pos_emb",
    "rotary tables": "transformers: cosines and sines of every position",
    "attention mask": "transformers: masking_utils",
    "feed-forward": "transformers: the activation function and what it is multiplied with",
    "experts": "transformers: grouped_mm over stacked experts",
    "router": "transformers: the router's probabilities and choice",
    "adapted experts": "peft: adds B·A to all experts' weights while they run",
    "adapted router": "peft: adds B·A to the router's weight while it runs",
    "residual stream": "transformers: the sum that each layer hands to the next",
    "embedding": "torch: embedding lookup",
    "last hidden state": "transformers: slice of the last hidden state",
    "loss": "transformers: upcasts the logits; torch: log_softmax saves its result",
}

_WHAT = {
    "activation": "output of the activation function",
    "add": "sum",
    "batched_product": "matrix product",
    "copy": "contiguous copy",
    "cross_entropy": "log-probabilities",
    "dropout": "after dropout",
    "efficient_attention": "output",
    "embedding": "rows of the table",
    "flash_attention": "output",
    "join": "parts side by side",
    "labels": "labels, shifted",
    "layer_norm": "output",
    "linear": "output",
    "linear_4bit": "output",
    "mean_of_columns": "mean of each row",
    "multiply": "product",
    "power": "power",
    "repeat_heads": "keys or values, repeated for each head",
    "scale": "scaled",
    "shift": "plus a constant",
    "softmax": "probabilities",
    "tanh": "tanh",
}
"""Operation → what it gives."""


_BACKWARD = {
    "activation": "the activation function",
    "batched_product": "the matrix product",
    "cast": "the cast",
    "linear": "the matrix product",
    "linear_4bit": "the matrix product",
    "repeat_heads": "repeating keys or values",
    "scale": "scaling",
    "tanh": "the root or tanh",
}
"""Operation → what people call its backward's operation, where its own name does not say it."""

_CAST = {
    "loss": "the logits",
    "linear": "the input",
    "adapter": "the input",
    "norm": "the input",
    "attention": "queries, keys or values",
    "router": "the router's logits",
}
"""Place → what is cast there."""


class Name(NamedTuple):
    """What a tensor is."""

    place: str
    """The part of the model that it belongs to."""
    module: str
    """Last component of its module's name; empty where the place says enough."""
    what: str
    source: str
    """Library, and what it does."""


def tensor_name(item: Item, spec: ModelSpec, recipe: Recipe) -> Name:
    """Return what ``item`` is called, and where it comes from."""
    origin = item.origin
    if origin == HELD:
        return _HELD[item.component]
    place = _PLACES[origin.caller]
    module = origin.module.rsplit(".", 1)[-1] if place in _WITH_OWN_NAME else ""
    if item.component == "gradients":
        return Name(place, module, "gradient", "torch: made in backward, in the dtype of the weight")
    return Name(place, module, _what(item, place, spec), _source(item, place, recipe))


_HELD = {
    "buffers": Name("batch", "", "token ids and labels, int64", "transformers: input_ids and labels"),
    "gradients": Name("gradients", "", "of the passes before", "torch: they gather until the optimizer steps"),
    "temporaries": Name("optimizer", "", "temporaries of its step", "the optimizer's library"),
}
"""Component → what is held in it from outside the step's own tensors."""


def _what(item: Item, place: str, spec: ModelSpec) -> str:
    if not item.origin.backward:
        return _made_in_forward(item, place, spec)
    if place == "loss":
        if item.monomial == "1":
            return "gradient of the head's weight" if item.origin.columns > 1 else "gradient of the loss"
        return {
            "cross_entropy": "gradients of the log-probabilities and the float32 logits",
            "cast": "gradient of the 16-bit logits",
        }.get(item.origin.operation, "gradient")
    if item.origin.operation == "linear_4bit" and item.monomial == "1":
        return "dequantised again for backward"
    if place == "adapted experts":
        return "backward of adding B·A"
    operation = item.origin.operation
    return f"backward of {_BACKWARD.get(operation, operation.replace('_', ' ')) or 'the operation'}"


def _made_in_forward(item: Item, place: str, spec: ModelSpec) -> str:
    operation, columns, dtype = item.origin.operation, item.origin.columns, item.origin.dtype
    of_weight = item.monomial in ("1", "r")
    if place == "adapted experts":
        return f"{dtype} copy of A or B" if operation == "cast" else "weights of all experts, plus B·A"
    if place == "adapted router":
        return "weight plus B·A" if operation == "add" else "B·A"
    if place == "rotary tables":
        return f"cosines and sines, {dtype}"
    if operation == "cast":
        weight = "the head's weight" if place == "loss" else "the weight"
        copied = weight if of_weight else _CAST.get(place, "what is there")
        return f"{dtype} copy of {copied}"
    if operation == "fused_linear_cross_entropy":
        return _of_fused_loss(item)
    if place == "loss":
        if item.monomial == "1":
            return "the loss itself"
        return {"linear": "logits", "copy": "logits, shifted"}.get(operation, _WHAT[operation])
    if operation == "linear" and place == "adapter":
        return {"B·S·r": "A·x", "B·S": "B·A·x"}.get(item.monomial, "output")
    if operation == "linear_4bit" and of_weight:
        sizes = {linear.in_features * linear.out_features for group in spec.layers for linear in group.linears}
        return "dequantised weight" if columns in sizes else "absmax, dequantised"
    if operation in ("flash_attention", "efficient_attention") and columns == spec.num_attention_heads:
        return "log-sum-exp of each row and head"
    if operation == "dropout" and dtype == "bool":
        return "dropout mask"
    if operation == "add" and place == "linear":
        return "output with the adapter's part"
    if operation == "tanh" and place == "norm":
        return "reciprocal root of each row's mean square"
    if operation == "add" and place == "rotary positions":
        return "rotated queries or keys"
    if operation == "add" and place == "residual stream":
        return "sum handed on, input of what follows"
    if operation == "multiply" and place == "norm":
        return "normed rows"
    if operation == "layer_norm" and columns == STATISTICS:
        return "mean and deviation of each row"
    if place == "attention mask" or (not operation and item.component == "buffers"):
        return dtype
    return _WHAT.get(operation, "indices" if dtype in ("int64", "int32") else "rows, chosen and in order")


def _of_fused_loss(item: Item) -> str:
    columns, dtype, component = item.origin.columns, item.origin.dtype, item.component
    if item.monomial == "c":
        return "a chunk's logits" if component == "logits" else "a chunk of hidden states, or of their gradient"
    if item.monomial == "1":
        if columns == 1:
            return "the loss itself"
        made = component == "activations"
        return "gradient of the head's weight" if made else f"{dtype} copy of the head's weight or of its gradient"
    if columns > 1:
        return "gradient of the last hidden state"
    return {"int64": "labels, shifted", "float32": "loss of each token", "bool": "which tokens count"}[dtype]


def _source(item: Item, place: str, recipe: Recipe) -> str:
    origin = item.origin
    if origin.operation == "fused_linear_cross_entropy":
        return "Liger: logits by chunks of tokens, gradients in forward"
    product = place in ("linear", "adapter") or (place == "loss" and item.monomial == "1")
    if origin.operation == "cast" and product and recipe.mixed_precision != "no":
        return "torch: autocast, which casts what matrix products take"
    if place == "linear":
        if origin.operation in ("add", "copy"):
            return _SOURCES["adapter"]
        if recipe.method == "qlora":
            return "bitsandbytes: the weight is dequantised for each product"
        return "torch: matrix product"
    if place == "attention":
        return f"torch and transformers: {recipe.attn_implementation} attention"
    return _SOURCES[place]
