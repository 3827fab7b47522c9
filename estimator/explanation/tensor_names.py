"""Names for the tensors of a step, and the library that allocates them."""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.closed_form.autograd import Part
from lorabench.estimator.closed_form.itemised import Item
from lorabench.estimator.closed_form.sizes import ONE, TOKENS, R
from lorabench.estimator.recipes.recipe import Recipe

_SOURCES: dict[Part, str] = {
    "adapter": "peft: A (r, in) and B (out, r) beside the base layer",
    "norm": "transformers: norms compute in float32",
    "rotary positions": "transformers: apply_rotary_pos_emb",
    "rotary tables": "transformers: cosines and sines of every position",
    "attention mask": "transformers: masking_utils",
    "feed-forward": "transformers: the activation function, and its product with up in gated feed-forwards",
    "experts": "transformers: the experts, and the weighted sum of their outputs",
    "router": "transformers: the router's probabilities and top-k",
    "adapted experts": "peft: adds B·A to all experts' weights while they run",
    "adapted router": "peft: adds B·A to the router's weight while it runs",
    "residual stream": "transformers: the sum that each layer passes to the next",
    "layer": "transformers: an operation of the layer",
    "embedding": "torch: embedding lookup",
    "loss": "transformers: upcasts the logits; torch: log_softmax saves its result",
    "fused loss": "Liger, TRL, Cut Cross-Entropy: logits by chunks, or none at all",
}
"""Linear layers and attention: the library depends on the recipe (`_source`)."""

_WHAT = {
    "activation": "output of the activation function",
    "add": "sum",
    "batched_matmul": "matmul",
    "choice": "probabilities of the chosen experts",
    "copy": "contiguous copy",
    "cross_entropy": "log-probabilities",
    "division": "probabilities, divided by their sum",
    "dropout": "after dropout",
    "cudnn_attention": "output",
    "efficient_attention": "output",
    "embedding": "rows of the table",
    "flash_attention": "output",
    "gather": "tokens, selected and sorted",
    "grouped_matmul": "matmul",
    "join": "concatenated parts",
    "layer_norm": "output",
    "linear": "output",
    "linear_4bit": "output",
    "mean": "mean of each token",
    "multiply": "product",
    "power": "power",
    "repeat_heads": "keys or values, repeated for each head",
    "rsqrt": "reciprocal root",
    "scale": "scaled",
    "shift": "plus a constant",
    "softmax": "probabilities",
    "sum": "sum",
    "tanh": "tanh",
}
"""Operation → name of its result."""

_WHAT_IN: dict[tuple[Part, str], str] = {
    ("linear", "add"): "output plus the adapter's",
    ("loss", "linear"): "logits",
    ("loss", "copy"): "logits, shifted",
    ("norm", "multiply"): "normed tokens",
    ("norm", "rsqrt"): "reciprocal root of each token's mean square",
    ("residual stream", "add"): "sum, input of the next sublayer",
    ("rotary positions", "add"): "rotated queries or keys",
}
"""Part and operation → name of the result, if a more specific one exists."""

_BACKWARD = {
    "activation": "the activation function",
    "batched_matmul": "the matmul",
    "cast": "the cast",
    "choice": "the choice of experts",
    "division": "the division by the sum",
    "gather": "the selection of tokens",
    "grouped_matmul": "the matmul",
    "linear": "the matmul",
    "linear_4bit": "the matmul",
    "repeat_heads": "repeating keys or values",
    "rsqrt": "the reciprocal root",
    "scale": "scaling",
    "sum": "the sum",
}
"""Operation → name of its backward, if it differs from the operation's."""

_CAST: dict[Part, str] = {
    "loss": "the logits",
    "linear": "the input",
    "adapter": "the input",
    "norm": "the input",
    "attention": "queries, keys or values",
    "router": "the router's logits",
}
"""Place → name of the tensor that is cast there."""


class Name(NamedTuple):
    """The name of a tensor."""

    place: str
    """The part of the model."""
    module: str
    """Last component of its module's path; empty if the place is specific enough."""
    what: str
    source: str
    """The library, and its behaviour."""


def tensor_name(item: Item, recipe: Recipe) -> Name:
    """Return the name of ``item`` and its source."""
    maker = item.maker
    part = maker.place.part
    if part is None:
        return _GIVEN[item.component]
    module = maker.place.module.rsplit(".", 1)[-1]
    if item.component == "gradients":
        return Name(part, module, "gradient", "torch: made in backward, in the dtype of the weight")
    return Name(part, module, _what(item, part), _source(item, part, recipe))


_GIVEN = {
    "buffers": Name("batch", "", "token ids and labels, int64", "transformers: input_ids and labels"),
    "gradients": Name("gradients", "", "of earlier micro-batches", "torch: they accumulate until the optimizer step"),
    "temporaries": Name("optimizer", "", "temporaries of its step", "the optimizer's library"),
}
"""Component → name of its tensors from outside the step."""


def _what(item: Item, part: Part) -> str:
    maker = item.maker
    if maker.name:
        return maker.name
    if not maker.backward:
        return _made_in_forward(item, part)
    if part in ("loss", "fused loss"):
        if item.monomial is ONE:
            return "gradient of the head's weight"
        return {
            "cross_entropy": "gradients of the log-probabilities and the float32 logits",
            "cast": "gradient of the 16-bit logits",
        }.get(maker.operation, "gradient")
    if part == "adapted experts":
        return "backward of adding B·A"
    return f"backward of {_BACKWARD.get(maker.operation, maker.operation.replace('_', ' '))}"


def _made_in_forward(item: Item, part: Part) -> str:
    operation, dtype = item.maker.operation, item.maker.dtype
    if part == "adapted experts":
        return f"{dtype} copy of A or B" if operation == "cast" else "weights of all experts, plus B·A"
    if part == "adapted router":
        return "weight plus B·A" if operation == "add" else "B·A"
    if part == "rotary tables":
        return f"cosines and sines, {dtype}"
    if part == "attention mask":
        return dtype
    if operation == "cast":
        weight = "the head's weight" if part == "loss" else "the weight"
        copied = weight if item.monomial in (ONE, R) else _CAST.get(part, "the tensor")
        return f"{dtype} copy of {copied}"
    if operation == "linear" and part == "adapter":
        return {TOKENS * R: "A·x", TOKENS: "B·A·x"}.get(item.monomial, "output")
    what = _WHAT.get(operation, f"output of {operation.replace('_', ' ')}")
    return _WHAT_IN.get((part, operation), what)


def _source(item: Item, part: Part, recipe: Recipe) -> str:
    operation = item.maker.operation
    product = part in ("linear", "adapter") or (part == "loss" and item.monomial is ONE)
    if operation == "cast" and product and recipe.mixed_precision != "no":
        return "torch: autocast casts the inputs of matmuls"
    if part == "linear":
        if operation in ("add", "copy"):
            return _SOURCES["adapter"]
        if recipe.quantization is not None:
            return "bitsandbytes: the weight is dequantised for each matmul"
        return "torch: matmul"
    if part == "attention":
        return f"torch and transformers: {recipe.attn_implementation} attention"
    return _SOURCES[part]
