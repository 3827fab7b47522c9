"""Mixtures of experts: the router, and the experts as one grouped matmul over their stacked weights.

transformers 5 stores all experts of a layer in two three-dimensional parameters, which bitsandbytes does not quantise.
It runs them through `grouped_mm` (`integrations/moe.py`), whose sizes depend on the number of tokens, not on the
routing. With all-linear, peft adapts these parameters and the router's. While their module runs, it replaces each by
W + scale · B·A, a tensor as large as W (`ParamWrapper` of peft 0.21).
"""

from __future__ import annotations

from lorabench.estimator.closed_form.adapters import Router, Stack
from lorabench.estimator.closed_form.autograd import Broadcast, Gradients, Tensor
from lorabench.estimator.closed_form.modules import Modules
from lorabench.estimator.closed_form.sizes import ONE, TOKENS
from lorabench.estimator.closed_form.work import Matmul

ROUTER = "mlp.gate.weight"
INDEX = "indices"


def sparse_mlp(m: Modules, hidden: Tensor, *, normed: bool, float32_weights: bool) -> Tensor:
    """Return the weighted sum of the outputs of each token's experts, (B·S, h).

    ``normed``: the routing weights of a token are divided by their sum. ``float32_weights``: they keep the softmax's
    float32; else they are cast to the dtype of the router's logits.
    """
    tape = m.op.tape
    with tape.scope("router"):
        logits, scores = _route(m, hidden, normed=normed, float32_weights=float32_weights)
    with tape.scope("experts"):
        output = _experts(m, hidden, scores)
    del logits  # transformers references the router's logits until the experts are done
    return output


def _route(m: Modules, hidden: Tensor, *, normed: bool, float32_weights: bool) -> tuple[Tensor, Tensor]:
    """Return the router's logits, (B·S, experts), and the routing weights, (B·S, experts per token)."""
    op = m.op
    experts, chosen = _counts(m)
    router = Router(op, m.weights[ROUTER], m.adapters.get(ROUTER))
    weight = router.weight()
    logits = op.linear(hidden, weight, experts)
    probabilities = op.softmax(logits, "float32")
    top = top_probabilities(m, probabilities, chosen)
    if normed:
        top = normed_weights(m, top)
    return logits, top if float32_weights else op.cast(top, logits.dtype)


def top_probabilities(m: Modules, probabilities: Tensor, chosen: int) -> Tensor:
    """Return each token's largest probabilities, (B·S, ``chosen``). It saves their int64 indices for backward."""
    tape, experts = m.op.tape, probabilities.features
    indices = tape.new(TOKENS, chosen, "int64", name=INDEX)
    # topk: value_selecting_reduction_backward(grad, dim, indices, sizes), which scatters grad into zeros.
    return tape.record(
        "choice",
        (probabilities,),
        lambda g, _: (tape.new(TOKENS, experts, g.dtype),),
        (indices,),
        lambda: tape.new(TOKENS, chosen, "float32"),
    )


def normed_weights(m: Modules, top: Tensor) -> Tensor:
    """Return ``top`` divided by each token's sum. transformers divides in place, so autograd saves a clone of ``top``.

    Shapes: (B·S, experts per token).
    """
    tape, chosen = m.op.tape, top.features
    # sum: grad.expand(sizes), a view
    total = tape.record("sum", (top,), lambda g, _: (g.view(chosen),), (), lambda: tape.new(TOKENS, 1, "float32"))

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        # div: self: grad / other; other: -grad * ((self / other) / other), summed to one number per token.
        return tape.like(g), Broadcast(tape.like(g), TOKENS, 1)

    saved = (top, total) if top.requires_grad else ()
    return tape.record("division", (top, total), backward, saved, lambda: tape.like(top))


def _experts(m: Modules, hidden: Tensor, scores: Tensor) -> Tensor:
    op, tape = m.op, m.op.tape
    _, chosen = _counts(m)
    width = m.spec.hidden_size
    inner = m.spec.config.get("moe_intermediate_size") or m.spec.intermediate_size
    down_stack, gate_up_stack = _stack(m, "mlp.experts.down_proj"), _stack(m, "mlp.experts.gate_up_proj")
    by_expert = tape.new(TOKENS, chosen, "int64", name=INDEX)
    order = tape.new(TOKENS, chosen, "int64", name=INDEX)
    selected = _gather(m, hidden, width * chosen)
    sorted_scores = _gather(m, scores, chosen, order)
    counted = tape.new(TOKENS, chosen, "int32", name=INDEX)
    gate_up_weight = gate_up_stack.weight()
    gate_up = _grouped(m, selected, gate_up_weight, 2 * inner * chosen)
    gate, up = op.split(gate_up, inner * chosen, inner * chosen)
    gated = op.multiply(op.activation(gate), up)
    del gate, up, gate_up
    down_weight = down_stack.weight()
    output = _grouped(m, gated, down_weight, width * chosen)
    del gated
    weighted = op.multiply(output, sorted_scores)
    weighted = _gather(m, weighted, width * chosen)
    total = _sum_of_experts(m, weighted, width)
    total = op.cast(total, hidden.dtype)
    del by_expert, output, selected, counted
    del gate_up_weight, down_weight, gate_up_stack, down_stack  # peft restores the parameters only now
    return total


def _stack(m: Modules, name: str) -> Stack:
    return Stack(m.op, m.weights[name], m.adapters.get(name), _counts(m)[0])


def _counts(m: Modules) -> tuple[int, int]:
    config = m.spec.config
    experts: int = config.get("num_local_experts") or config["num_experts"]
    return experts, config["num_experts_per_tok"]


def _gather(m: Modules, x: Tensor, features: int, index: Tensor | None = None) -> Tensor:
    """Return rows of x, reordered or repeated by an index, (B·S, ``features``)."""
    chosen = _counts(m)[1]
    if index is None:
        index = m.op.tape.new(TOKENS, chosen, "int64", name=INDEX)
    return m.op.gather(x, TOKENS, features, index, chosen)


def _grouped(m: Modules, x: Tensor, weight: Tensor, features: int) -> Tensor:
    """Return the grouped matmul of x with stacked weights, (B·S, ``features``).

    It runs in the dtype of the weights: autocast does not cast `_grouped_mm`. The work assumes that the router spreads
    tokens evenly over the experts.
    """
    tape, (experts, chosen) = m.op.tape, _counts(m)
    cast = m.op.cast(x, weight.dtype)
    x_needs, weight_needs = cast.requires_grad, weight.requires_grad
    in_features, elements, dtype = cast.features, weight.features, weight.dtype
    tokens, k, n = (chosen / experts, TOKENS), (in_features / chosen, ONE), (features / chosen, ONE)
    batch = (experts, ONE)

    def forward() -> Tensor:
        with tape.working(Matmul("linear layers", tokens, n, k, dtype, batch)):
            return tape.new(TOKENS, features, dtype)

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        # _grouped_mm: mat2: self.transpose(-2, -1) @ grad; self: grad @ mat2.transpose(-2, -1), for each group.
        to_x = to_weight = None
        if weight_needs:
            with tape.working(Matmul("linear layers", n, k, tokens, dtype, batch)):
                to_weight = tape.new(ONE, elements, dtype)
        if x_needs:
            with tape.working(Matmul("linear layers", tokens, k, n, dtype, batch)):
                to_x = tape.new(TOKENS, in_features, dtype)
        return to_x, to_weight

    saved = (*((cast,) if weight_needs else ()), *((weight,) if x_needs else ()))
    return tape.record("grouped_matmul", (cast, weight), backward, saved, forward)


def _sum_of_experts(m: Modules, weighted: Tensor, width: int) -> Tensor:
    """Return the sum over each token's experts, (B·S, ``width``). Under CUDA's autocast the result is float32.

    The kernel of the sum reads 16-bit inputs itself, so autocast allocates no cast of them.
    """
    op, tape = m.op, m.op.tape
    features, dtype = weighted.features, weighted.dtype
    summed = "float32" if op.autocast is not None and op.backend == "cuda" else dtype

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        # sum: grad.expand(sizes), a view, which the next backward copies into a tensor.
        return (tape.new(TOKENS, features, dtype),)

    return tape.record("sum", (weighted,), backward, (), lambda: tape.new(TOKENS, width, summed))
