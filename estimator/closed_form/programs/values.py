"""Tensors with shape and strides, and what all functions of a program share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lorabench.estimator.closed_form.autograd import Broadcast, Gradients, Node, Tensor, promote
from lorabench.estimator.closed_form.layout import (
    UNIT,
    Dim,
    Layout,
    Shape,
    Sizes,
    Strides,
    Unsupported,
    contiguous,
    elements,
    elementwise,
)
from lorabench.estimator.closed_form.modules import Modules
from lorabench.estimator.closed_form.sizes import ONE


class Value(NamedTuple):
    """A tensor with its shape and strides."""

    tensor: Tensor
    shape: Shape
    strides: Strides
    base: Tensor | None = None
    """The tensor that it is a slice of, if it is one."""
    base_shape: Shape = ()

    def without_history(self) -> Tensor:
        """Return the tensor, without a node."""
        return self.tensor.without_history()


class Parts(list[Value]):
    """Values that an operation joins, of which a loop made some: one for each iteration."""

    total: Dim = UNIT
    """Their number, of which an iteration's are as many as its loop has iterations for any length."""


FLOATING = ("complex64", "float32", "bfloat16", "float16")


class Values:
    """Makes tensors on the tape of a layer's modules, or of those around the layers."""

    def __init__(self, m: Modules, sizes: Sizes) -> None:
        self.m = m
        self.op = m.op
        self.tape = m.op.tape
        self.sizes = sizes

    def fresh(self, shape: Shape, dtype: str, strides: Strides | None = None) -> Value:
        """Return a new tensor; contiguous without ``strides``."""
        n, symbols = elements(shape)
        return Value(self.tape.new(symbols, n, dtype), shape, strides or self.contiguous(shape))

    def contiguous(self, shape: Shape) -> Strides:
        """Return the strides of a contiguous tensor of ``shape``."""
        return contiguous(self.sizes.numbers(shape))

    def laid(self, tensor: Tensor, like: Value) -> Value:
        """Return an elementwise operation's result: ``tensor`` in the shape of ``like``."""
        numbers = self.sizes.numbers(like.shape)
        return Value(tensor, like.shape, elementwise(numbers, (numbers, like.strides)))

    def layout(self, gradient: Tensor, shape: Shape) -> Layout:
        """Return the layout of a gradient of ``shape``: contiguous if nothing else is known."""
        if gradient.layout is not None:
            return gradient.layout
        numbers = self.sizes.numbers(shape)
        return Layout(numbers, contiguous(numbers))

    def view(
        self, x: Value, shape: Shape, strides: Strides, operation: str, backward: Callable[[Tensor], Tensor]
    ) -> Value:
        """Return a view of x, whose gradient is ``backward`` of the view's."""
        n, symbols = elements(shape)
        tensor = x.tensor.view(n)
        tensor.tokens = symbols
        tensor.times = ONE
        if x.tensor.requires_grad and not self.tape.unrecorded:
            tensor.node = Node(self.tape, operation, lambda g, _: (backward(g),), (x.tensor,), ())
        return Value(tensor, shape, strides)

    def new_gradient(self, shape: Shape, dtype: str, layout: Layout | None = None) -> Tensor:
        """Return a new gradient of ``shape``."""
        n, symbols = elements(shape)
        tensor = self.tape.new(symbols, n, dtype)
        tensor.layout = layout
        return tensor

    def viewed_gradient(self, g: Tensor, shape: Shape, layout: Layout) -> Tensor:
        """Return a view of gradient ``g`` in ``shape``."""
        n, symbols = elements(shape)
        view = g.view(n)
        view.tokens = symbols
        view.times = ONE
        view.layout = layout
        return view

    def _gathered(self, name: str, x: Value, shape: Shape, saved: tuple[Tensor, ...]) -> Value:
        """Return a new tensor of elements of x, whose gradient is as large as x."""
        n, symbols = elements(shape)
        was, dtype = x.shape, x.tensor.dtype

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            return (self.new_gradient(was, g.dtype),)

        return Value(
            self.tape.record(name, (x.tensor,), backward, saved, lambda: self.tape.new(symbols, n, dtype)),
            shape,
            self.contiguous(shape),
        )

    def flat(self, x: Value) -> Tensor:
        """Return the tensor of x, with its last dimension as features and the others as tokens."""
        rows = elements(x.shape[:-1])
        if rows.n != 1 or x.shape[-1].symbols is not ONE:
            raise Unsupported(f"a linear layer of {x.shape}")
        tensor = x.tensor
        tensor.tokens, tensor.features = rows.symbols, x.shape[-1].n
        return tensor

    def joint(self, a: Value, b: Value) -> Shape:
        """Return the shape to which a and b are broadcast."""
        rank = max(len(a.shape), len(b.shape))
        pairs = zip(*((*(UNIT,) * (rank - len(x.shape)), *x.shape) for x in (a, b)), strict=True)
        return tuple(self._wider(first, second) for first, second in pairs)

    def _wider(self, first: Dim, second: Dim) -> Dim:
        """Return the dimension to which two are broadcast. A batch of one sequence keeps its symbol."""
        one = self.sizes.number(first) == 1
        return second if one and (second != UNIT or self.sizes.number(second) != 1) else first

    def _to_operand(self, g: Tensor, whole: Shape, own: Shape) -> Tensor | Broadcast:
        """Return the gradient of an operand, which is summed to its shape if it was broadcast."""
        if self.sizes.number(elements(whole)) == self.sizes.number(elements(own)):
            return g
        n, symbols = elements(own)
        return Broadcast(g, symbols, n)

    def _promoted(self, a: Value, b: Value) -> str:
        first, second = a.tensor.dtype, b.tensor.dtype
        if first == second:
            return first
        if first not in FLOATING:
            return second
        if second not in FLOATING:
            return first
        if not a.shape:
            return second
        if not b.shape:
            return first
        if "complex64" in (first, second):
            return "complex64"
        return promote(first, second)

    def _torch_clone(self, x: Value) -> Value:
        return Value(self._copied(x), x.shape, self.contiguous(x.shape))

    def _copied(self, x: Value) -> Tensor:
        n, symbols = elements(x.shape)
        # clone: grad
        return self.tape.record(
            "copy", (x.tensor,), lambda g, _: (g.passed_on(),), (), lambda: self.tape.new(symbols, n, x.tensor.dtype)
        )
