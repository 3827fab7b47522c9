"""Mixtures of experts: the router, and the experts as one grouped product over their stacked weights.

transformers 5 keeps all experts of a layer in two three-dimensional parameters, which bitsandbytes does not quantise
and peft's all-linear does not adapt, and runs them through `grouped_mm`, whose sizes depend on the number of tokens and
not on where the router sends them (`integrations/moe.py`).
"""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Gradients, Tensor, promote
from lorabench.estimator.closed_form.modules import Modules
from lorabench.estimator.closed_form.sizes import BS, ONE


def sparse_mlp(m: Modules, hidden: Tensor) -> Tensor:
    """Return the weighted sum of what each token's experts make of it."""
    scores = _route(m, hidden)
    return _experts(m, hidden, scores)


def _route(m: Modules, hidden: Tensor) -> Tensor:
    """Return each token's weights for its experts, (tokens, num_experts_per_tok)."""
    op, config = m.op, m.spec.config
    experts, chosen = _counts(m)
    logits = op.linear(hidden, m.weights["mlp.gate.weight"], experts)
    probabilities = op.softmax(logits, "float32")
    top = _top(m, probabilities, chosen)
    if m.spec.model_type == "mixtral":
        return top
    if config["norm_topk_prob"]:
        op.tape.new(BS, 1, "float32")
    return op.cast(top, logits.dtype)


def _top(m: Modules, probabilities: Tensor, chosen: int) -> Tensor:
    """Return the largest probabilities of each token; their indices, int64, are saved."""
    tape, experts = m.op.tape, probabilities.columns
    indices = tape.new(BS, chosen, "int64")
    return tape.record(
        (probabilities,),
        lambda g, _: (tape.new(BS, experts, g.dtype),),
        (indices,),
        lambda: tape.new(BS, chosen, "float32"),
    )


def _experts(m: Modules, hidden: Tensor, scores: Tensor) -> Tensor:
    op, tape = m.op, m.op.tape
    _, chosen = _counts(m)
    width = m.spec.hidden_size
    inner = m.spec.config.get("moe_intermediate_size") or m.spec.intermediate_size
    by_expert = tape.new(BS, chosen, "int64")
    order = tape.new(BS, chosen, "int64")
    selected = _gather(m, hidden, width * chosen)
    sorted_scores = _gather(m, scores, chosen, order)
    gate_up = _grouped(m, selected, "mlp.experts.gate_up_proj", 2 * inner * chosen)
    gate, up = op.split(gate_up, inner * chosen, inner * chosen)
    product = op.multiply(op.activation(gate), up)
    del gate, up, gate_up
    output = _grouped(m, product, "mlp.experts.down_proj", width * chosen)
    weighted = _weight(m, output, sorted_scores, chosen)
    weighted = _gather(m, weighted, width * chosen)
    total = _sum_of_experts(m, weighted, width)
    del by_expert, output, product, selected
    return op.cast(total, hidden.dtype)


def _counts(m: Modules) -> tuple[int, int]:
    config = m.spec.config
    experts: int = config.get("num_local_experts") or config["num_experts"]
    return experts, config["num_experts_per_tok"]


def _gather(m: Modules, x: Tensor, columns: int, index: Tensor | None = None) -> Tensor:
    """Return rows of x in another order or several times; the int64 index is saved."""
    tape, chosen, was = m.op.tape, _counts(m)[1], x.columns
    if index is None:
        index = tape.new(BS, chosen, "int64")
    dtype = x.dtype
    return tape.record((x,), lambda g, _: (tape.new(BS, was, g.dtype),), (index,), lambda: tape.new(BS, columns, dtype))


def _grouped(m: Modules, x: Tensor, name: str, columns: int) -> Tensor:
    """Return the grouped product with the stacked weights ``name``, in their dtype: autocast leaves it alone."""
    tape, weight = m.op.tape, m.weights[name]
    cast = m.op.cast(x, weight.dtype)
    x_needs, weight_needs = cast.requires_grad, weight.requires_grad
    in_columns, elements, dtype = cast.columns, weight.columns, weight.dtype

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        to_x = tape.new(BS, in_columns, dtype) if x_needs else None
        to_weight = tape.new(ONE, elements, dtype) if weight_needs else None
        return to_x, to_weight

    saved = (*((cast,) if weight_needs else ()), *((weight,) if x_needs else ()))
    return tape.record((cast, weight), backward, saved, lambda: tape.new(BS, columns, dtype))


def _weight(m: Modules, output: Tensor, scores: Tensor, chosen: int) -> Tensor:
    """Return each expert's output times its score."""
    tape, dtype = m.op.tape, promote(output.dtype, scores.dtype)
    output_needs, scores_need = output.requires_grad, scores.requires_grad

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        to_output = tape.like(g) if output_needs else None
        to_scores = None
        if scores_need:
            product = tape.like(g)
            to_scores = tape.new(BS, chosen, product.dtype)
        return to_output, to_scores

    saved = (*((scores,) if output_needs else ()), *((output,) if scores_need else ()))
    return tape.record((output, scores), backward, saved, lambda: tape.like(output, dtype))


def _sum_of_experts(m: Modules, weighted: Tensor, width: int) -> Tensor:
    """Return the sum over each token's experts; CUDA's autocast sums in float32."""
    op = m.op
    x = op.cast(weighted, "float32") if op.autocast is not None and op.kernels == "cuda" else weighted
    tape, columns = op.tape, x.columns
    # The gradient of a sum is a view that is expanded, and takes no memory of its own.
    return tape.record((x,), lambda g, _: (g.view(columns),), (), lambda: tape.new(BS, width, x.dtype))
