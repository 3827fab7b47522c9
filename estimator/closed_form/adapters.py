"""The operations that each kind of adapter adds to the forward pass, as in peft 0.21.

The base layer is passed as a function, since the adapter decides when it runs. The order of operations and the
lifetimes of local variables are peft's, because they determine which tensors are alive at the peak.
"""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.closed_form.autograd import Gradients, Node, Tape, Tensor
from lorabench.estimator.closed_form.operators import Operators
from lorabench.estimator.closed_form.sizes import ONE, R
from lorabench.estimator.closed_form.work import Matmul
from lorabench.estimator.methods.base import Adapter
from lorabench.estimator.methods.ia3 import IA3
from lorabench.estimator.methods.lora import LoRA
from lorabench.estimator.models.spec import Linear

Base = Callable[[Tensor], Tensor]
"""A linear layer without its adapter: x (B·S, in_features) → (B·S, out_features)."""


def adapted_linear(
    op: Operators,
    adapter: Adapter,
    linear: Linear,
    tensors: tuple[Tensor, ...],
    base: Base,
    x: Tensor,
    *,
    quantized: bool,
) -> Tensor:
    """Return the output of ``linear`` with its adapter for x (B·S, in_features): (B·S, out_features).

    ``tensors``: the adapter's tensors for this layer. ``quantized``: the base is a 4-bit layer; peft has separate
    modules for these.

    Raises:
        NotImplementedError: the method has no forward pass here.
    """
    match adapter:
        case LoRA():
            lora = _lora_4bit if quantized else _lora
            return lora(op, adapter, linear, tensors, base, x)
        case IA3() if not quantized:
            return _ia3(op, adapter, linear, tensors, base, x)
    raise NotImplementedError(f"no forward pass of {type(adapter).__name__}")


# LoRA. A module's caller references the input until the module returns, so tensors made from it get other names.


def _lora(op: Operators, adapter: LoRA, linear: Linear, tensors: tuple[Tensor, ...], base: Base, x: Tensor) -> Tensor:
    result = base(x)
    dtype = result.dtype
    cast = op.cast(x, tensors[0].dtype)
    result = op.add(result, _low_rank(op, adapter, linear, tensors, cast))
    return op.cast(result, dtype)


def _lora_4bit(
    op: Operators, adapter: LoRA, linear: Linear, tensors: tuple[Tensor, ...], base: Base, x: Tensor
) -> Tensor:
    result = base(x)
    result = op.copy(result)
    if op.autocast is not None and op.backend == "cuda":
        # peft calls torch.is_autocast_enabled() without a device, which answers for CUDA.
        return op.add(result, _low_rank(op, adapter, linear, tensors, x))
    cast = op.cast(x, tensors[0].dtype)
    output = _low_rank(op, adapter, linear, tensors, cast)
    output = op.cast(output, result.dtype)
    return op.add(result, output)


def _low_rank(op: Operators, adapter: LoRA, linear: Linear, tensors: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """Return scale · B A dropout(x), (B·S, out_features)."""
    a, b = tensors
    with op.tape.scope("adapter", linear.name):
        return op.scale(
            op.linear(op.linear(op.dropout(x, adapter.lora_dropout), a, 1, times=R), b, linear.out_features)
        )


def _ia3(op: Operators, adapter: IA3, linear: Linear, tensors: tuple[Tensor, ...], base: Base, x: Tensor) -> Tensor:
    [scales] = tensors
    dtype = x.dtype
    with op.tape.scope("adapter", linear.name):
        scaling = op.scale(scales)  # peft multiplies the scales of all active adapters, from 1
        if adapter.scales_input(linear):
            cast = op.cast(x, scales.dtype)
            scaled = op.cast(op.multiply(cast, scaling), dtype)
    if adapter.scales_input(linear):
        return base(scaled)
    result = base(x)
    with op.tape.scope("adapter", linear.name):
        return op.cast(op.multiply(result, scaling), result.dtype)


# LoRA of the experts' and the router's parameters (peft's `ParamWrapper`). While their module runs, peft replaces each
# parameter W by W + scale · B·A.


class Router:
    """The router's weight, with its adapter while the router runs."""

    def __init__(self, op: Operators, base: Tensor, tensors: tuple[Tensor, ...] | None) -> None:
        self.op = op
        self.base = base
        self.delta: Tensor | None = None
        if tensors is not None:
            a, b = tensors
            with op.tape.scope("adapted router"):
                self.delta = op.cast(op.scale(op.linear(b, a, base.features)), base.dtype)
            self.weight()  # register_parametrization runs it once, to check shape and dtype

    def weight(self) -> Tensor:
        """Return the weight, or the sum W + scale · B·A, a new tensor, if it is adapted."""
        if self.delta is None:
            return self.base
        with self.op.tape.scope("adapted router"):
            return self.op.add(self.base, self.delta)


class Stack:
    """The stacked weights of all ``experts``, with their adapters while the experts run."""

    def __init__(self, op: Operators, base: Tensor, tensors: tuple[Tensor, ...] | None, experts: int) -> None:
        self.tape = op.tape
        self.base = base
        self.experts = experts
        self.factors: tuple[Tensor, Tensor] | None = None
        if tensors is not None:
            a, b = tensors
            with self.tape.scope("adapted experts"):
                self.factors = op.cast(_by_expert(self.tape, b), base.dtype), op.cast(a, base.dtype)
            self.weight()  # register_parametrization runs it once, to check shape and dtype

    def weight(self) -> Tensor:
        """Return the weights, or W + scale · B·A of each expert, from one batched matmul, if they are adapted."""
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
            # bmm: self: grad.bmm(mat2.transpose(1, 2)); mat2: self.transpose(1, 2).bmm(grad). mul: grad * scale.
            gradients = []
            for shape, work in zip(shapes, (to_outer, to_inner), strict=True):
                with tape.working(work):
                    product = tape.new(*shape, times=R)
                gradients.append(tape.like(product))  # scaled
            return None, *gradients

        with tape.scope("adapted experts"):
            return tape.record("adapters of experts", (base, *self.factors), backward, self.factors, forward)


def _by_expert(tape: Tape, b: Tensor) -> Tensor:
    """Return B as a view grouped by expert. B is stored by output feature, so its gradient is copied to that order."""
    return b.view(node=Node(tape, "copy", lambda g, _: (tape.like(g),), (b,), ()))
