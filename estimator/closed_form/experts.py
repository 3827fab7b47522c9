"""Mixtures of experts: the router, and the experts as one grouped product over their stacked weights.

transformers 5 keeps all experts of a layer in two three-dimensional parameters, which bitsandbytes does not quantise,
and runs them through `grouped_mm`, whose sizes depend on the number of tokens and not on where the router sends them
(`integrations/moe.py`). Under all-linear peft adapts these parameters and the router's: while their module runs, each
is replaced by itself plus its adapters' product, a tensor as large as all experts (`ParamWrapper` of peft 0.21).
"""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Broadcast, Gradients, Node, Tape, Tensor, promote
from lorabench.estimator.closed_form.modules import Modules
from lorabench.estimator.closed_form.sizes import ONE, TOKENS, R
from lorabench.estimator.closed_form.work import Matmul

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
    router = Router(m)
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
    total = tape.record("sum", (top,), lambda g, _: (g.view(chosen),), (), lambda: tape.new(TOKENS, 1, "float32"))

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        return tape.like(g), Broadcast(tape.like(g), TOKENS, 1)

    saved = (top, total) if top.requires_grad else ()
    return tape.record("division", (top, total), backward, saved, lambda: tape.like(top))


def _experts(m: Modules, hidden: Tensor, scores: Tensor) -> Tensor:
    op, tape = m.op, m.op.tape
    _, chosen = _counts(m)
    width = m.spec.hidden_size
    inner = m.spec.config.get("moe_intermediate_size") or m.spec.intermediate_size
    down_stack, gate_up_stack = Stack(m, "mlp.experts.down_proj"), Stack(m, "mlp.experts.gate_up_proj")
    by_expert = tape.new(TOKENS, chosen, "int64", name=INDEX)
    order = tape.new(TOKENS, chosen, "int64", name=INDEX)
    selected = _gather(m, hidden, width * chosen)
    sorted_scores = _gather(m, scores, chosen, order)
    counted = tape.new(TOKENS, chosen, "int32", name=INDEX)
    gate_up_weight = gate_up_stack.weight()
    gate_up = _grouped(m, selected, gate_up_weight, 2 * inner * chosen)
    gate, up = op.split(gate_up, inner * chosen, inner * chosen)
    product = op.multiply(op.activation(gate), up)
    del gate, up, gate_up
    down_weight = down_stack.weight()
    output = _grouped(m, product, down_weight, width * chosen)
    del product
    weighted = _weight(m, output, sorted_scores, chosen)
    weighted = _gather(m, weighted, width * chosen)
    total = _sum_of_experts(m, weighted, width)
    total = op.cast(total, hidden.dtype)
    del by_expert, output, selected, counted
    del gate_up_weight, down_weight, gate_up_stack, down_stack  # only now is what was replaced put back
    return total


class Router:
    """The router's weight, with its adapter while the router runs."""

    def __init__(self, m: Modules) -> None:
        name = "mlp.gate.weight"
        self.op = m.op
        self.base = m.weights[name]
        self.delta: Tensor | None = None
        if name in m.adapters:
            a, b = m.adapters[name]
            with m.op.tape.scope("adapted router"):
                self.delta = m.op.cast(m.op.scale(m.op.linear(b, a, self.base.features)), self.base.dtype)
            self.weight()  # torch tries a parametrization when it is registered

    def weight(self) -> Tensor:
        """Return the weight, a new tensor where it is adapted."""
        if self.delta is None:
            return self.base
        with self.op.tape.scope("adapted router"):
            return self.op.add(self.base, self.delta)


class Stack:
    """The stacked weights of all experts, with their adapters while the experts run."""

    def __init__(self, m: Modules, name: str) -> None:
        self.tape = m.op.tape
        self.base = m.weights[name]
        self.experts = _counts(m)[0]
        self.factors: tuple[Tensor, Tensor] | None = None
        if name in m.adapters:
            a, b = m.adapters[name]
            dtype = self.base.dtype
            with self.tape.scope("adapted experts"):
                self.factors = m.op.cast(_by_expert(self.tape, b), dtype), m.op.cast(a, dtype)
            self.weight()  # torch tries a parametrization when it is registered

    def weight(self) -> Tensor:
        """Return the weights: where they are adapted, base + scale · B · A for each expert, in one batched product."""
        if self.factors is None:
            return self.base
        tape, base = self.tape, self.base
        shapes = [(factor.tokens, factor.features, factor.dtype) for factor in self.factors]

        rank = (1, R)
        outer, inner = ((factor.features / self.experts, ONE) for factor in self.factors)
        batch = (self.experts, ONE)
        to_outer = Matmul("adapters", outer, rank, inner, base.dtype, batch)
        to_inner = Matmul("adapters", rank, inner, outer, base.dtype, batch)

        def forward() -> Tensor:
            with tape.working(Matmul("adapters", outer, inner, rank, base.dtype, batch)):
                return tape.like(base)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            gradients = []
            for shape, work in zip(shapes, (to_outer, to_inner), strict=True):
                with tape.working(work):
                    product = tape.new(*shape, times=R)
                gradients.append(tape.like(product))  # scaled
            return None, *gradients

        with tape.scope("adapted experts"):
            return tape.record("adapters of experts", (base, *self.factors), backward, self.factors, forward)


def _by_expert(tape: Tape, b: Tensor) -> Tensor:
    """Return B, which lies by output feature, as seen by expert; its gradient is copied to lie as B does."""
    return b.view(node=Node(tape, "copy", lambda g, _: (tape.like(g),), (b,), ()))


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
        added = tape.new(TOKENS, was, g.dtype)
        scratch = [tape.new(TOKENS, chosen, "int64") for _ in range(6)] if cuda else []
        del scratch
        return (added,)

    return tape.record("gather", (x,), backward, (index,), lambda: tape.new(TOKENS, features, dtype))


def _grouped(m: Modules, x: Tensor, weight: Tensor, features: int) -> Tensor:
    """Return the grouped product with stacked weights, in their dtype: autocast leaves it alone.

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
