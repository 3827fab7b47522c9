"""Mixtures of experts: the router, and the experts as one grouped matmul over their stacked weights.

transformers 5 keeps all experts of a layer in two three-dimensional parameters, which bitsandbytes does not quantise,
and runs them through `grouped_mm`, whose sizes depend on the number of tokens and not on where the router sends them
(`integrations/moe.py`). Under all-linear peft adapts these parameters and the router's: while their module runs, each
is replaced by itself plus its adapters' product, a tensor as large as all experts (`ParamWrapper` of peft 0.21).
"""

from __future__ import annotations

from lorabench.estimator.closed_form.adapters import Router, Stack
from lorabench.estimator.closed_form.autograd import Broadcast, Gradients, Tensor, promote
from lorabench.estimator.closed_form.modules import Modules
from lorabench.estimator.closed_form.sizes import ONE, TOKENS
from lorabench.estimator.closed_form.work import Matmul

ROUTER = "mlp.gate.weight"
INDEX = "indices"


def sparse_mlp(m: Modules, hidden: Tensor, *, normed: bool, float32_weights: bool) -> Tensor:
    """Return the weighted sum of what each token's experts make of it, (B·S, h).

    ``normed``: the weights of a token's experts are divided by their sum. ``float32_weights``: they stay float32, as
    the softmax made them, and are not cast back to the dtype of the router's logits.
    """
    tape = m.op.tape
    with tape.scope("router"):
        logits, scores = _route(m, hidden, normed=normed, float32_weights=float32_weights)
    with tape.scope("experts"):
        output = _experts(m, hidden, scores)
    del logits  # its caller holds the router's whole output
    return output


def _route(m: Modules, hidden: Tensor, *, normed: bool, float32_weights: bool) -> tuple[Tensor, Tensor]:
    """Return the router's logits, (B·S, experts), and each token's weights for its experts, (B·S, experts a token)."""
    op = m.op
    experts, chosen = _counts(m)
    router = Router(op, m.weights[ROUTER], m.adapters.get(ROUTER))
    weight = router.weight()
    logits = op.linear(hidden, weight, experts)
    probabilities = op.softmax(logits, "float32")
    top = _top(m, probabilities, chosen)
    if normed:
        top = _normed(m, top)
    return logits, top if float32_weights else op.cast(top, logits.dtype)


def _top(m: Modules, probabilities: Tensor, chosen: int) -> Tensor:
    """Return the largest probabilities of each token; their indices, int64, are saved."""
    tape, experts = m.op.tape, probabilities.features
    indices = tape.new(TOKENS, chosen, "int64", name=INDEX)
    # topk: value_selecting_reduction_backward(grad, dim, indices, sizes): zeros with grad scattered into them.
    return tape.record(
        "choice",
        (probabilities,),
        lambda g, _: (tape.new(TOKENS, experts, g.dtype),),
        (indices,),
        lambda: tape.new(TOKENS, chosen, "float32"),
    )


def _normed(m: Modules, top: Tensor) -> Tensor:
    """Return the weights divided in place by each token's sum; the undivided ones are saved in a copy."""
    tape, chosen = m.op.tape, top.features
    # sum: grad.expand(sizes), a view
    total = tape.record("sum", (top,), lambda g, _: (g.view(chosen),), (), lambda: tape.new(TOKENS, 1, "float32"))

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        # div: self: grad / other, other: -grad * ((self / other) / other), summed to one number a token.
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
    weighted = _weight(m, output, sorted_scores, chosen)
    weighted = _gather(m, weighted, width * chosen)
    total = _sum_of_experts(m, weighted, width)
    total = op.cast(total, hidden.dtype)
    del by_expert, output, selected, counted
    del gate_up_weight, down_weight, gate_up_stack, down_stack  # only now is what was replaced put back
    return total


def _stack(m: Modules, name: str) -> Stack:
    return Stack(m.op, m.weights[name], m.adapters.get(name), _counts(m)[0])


def _counts(m: Modules) -> tuple[int, int]:
    config = m.spec.config
    experts: int = config.get("num_local_experts") or config["num_experts"]
    return experts, config["num_experts_per_tok"]


def _gather(m: Modules, x: Tensor, features: int, index: Tensor | None = None) -> Tensor:
    """Return the tokens of x in another order or several times; the int64 index is saved.

    To add up their gradients CUDA sorts the index: it holds the indices, their order, both sorted, and both again.
    """
    tape, chosen, was = m.op.tape, _counts(m)[1], x.features
    cuda = m.op.kernels == "cuda"
    if index is None:
        index = tape.new(TOKENS, chosen, "int64", name=INDEX)
    dtype = x.dtype

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        # index: index_backward(grad.new_zeros(sizes), indices, grad)
        added = tape.new(TOKENS, was, g.dtype)
        scratch = [tape.new(TOKENS, chosen, "int64") for _ in range(6)] if cuda else []
        del scratch
        return (added,)

    return tape.record("gather", (x,), backward, (index,), lambda: tape.new(TOKENS, features, dtype))


def _grouped(m: Modules, x: Tensor, weight: Tensor, features: int) -> Tensor:
    """Return the grouped matmul with stacked weights, in their dtype: autocast leaves it alone.

    Each expert is taken to get as many tokens as any other.
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
        # _grouped_mm: self: grad @ mat2.transpose(-2, -1), mat2: self.transpose(-2, -1) @ grad, group by group.
        to_x = to_weight = None
        if x_needs:
            with tape.working(Matmul("linear layers", tokens, k, n, dtype, batch)):
                to_x = tape.new(TOKENS, in_features, dtype)
        if weight_needs:
            with tape.working(Matmul("linear layers", n, k, tokens, dtype, batch)):
                to_weight = tape.new(ONE, elements, dtype)
        return to_x, to_weight

    saved = (*((cast,) if weight_needs else ()), *((weight,) if x_needs else ()))
    return tape.record("grouped_matmul", (cast, weight), backward, saved, forward)


def _weight(m: Modules, output: Tensor, scores: Tensor, chosen: int) -> Tensor:
    """Return each expert's output times its score."""
    tape, dtype = m.op.tape, promote(output.dtype, scores.dtype)
    output_needs, scores_need = output.requires_grad, scores.requires_grad

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        # mul: self: grad * other, other: grad * self, summed over the features.
        to_output = tape.like(g) if output_needs else None
        to_scores = Broadcast(tape.like(g), TOKENS, chosen) if scores_need else None
        return to_output, to_scores

    saved = (*((scores,) if output_needs else ()), *((output,) if scores_need else ()))
    return tape.record("multiply", (output, scores), backward, saved, lambda: tape.like(output, dtype))


def _sum_of_experts(m: Modules, weighted: Tensor, width: int) -> Tensor:
    """Return the sum over each token's experts; CUDA's autocast sums in float32, in the kernel that reads 16 bits."""
    op, tape = m.op, m.op.tape
    features, dtype = weighted.features, weighted.dtype
    summed = "float32" if op.autocast is not None and op.kernels == "cuda" else dtype

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        # The gradient of a sum is an expanded view, of which a tensor is made.
        return (tape.new(TOKENS, features, dtype),)

    return tape.record("sum", (weighted,), backward, (), lambda: tape.new(TOKENS, width, summed))
