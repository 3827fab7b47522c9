"""Functions of each element: casts, sums, products, activations, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorabench.estimator.closed_form.autograd import Gradients, Tensor
from lorabench.estimator.closed_form.layout import (
    Layout,
    Shape,
    Unsupported,
    elements,
    elementwise,
)
from lorabench.estimator.closed_form.programs.copies import Copies
from lorabench.estimator.closed_form.programs.values import Value

SAVES_INPUT = {
    "silu",
    "gelu",
    "cos",
    "sin",
    "softplus",
    "abs",
    "log",
    "log1p",
    "relu6",
    "logsigmoid",
    "clamp",
    "clamp_min",
}
SAVES_OUTPUT = {"sigmoid", "tanh", "exp", "relu", "sqrt", "expm1", "reciprocal"}
SAVES_NOTHING = {"neg", "floor", "round", "sign", "ceil", "__rpow__"}
COMPARISONS = {
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_not",
    "__and__",
    "__or__",
    "__invert__",
    "__eq__",
    "isin",
}
FLOAT32 = {"exp", "expm1", "log", "log1p", "softplus", "reciprocal"}
"""Functions that CUDA's autocast runs in float32."""

OperandGradients = Callable[[Tensor, Shape], tuple[Tensor | None, ...]]
"""Maps the gradient of a result, and the result's shape, to the gradients of both operands in that shape."""


class Elementwise(Copies):
    """Functions of each element."""

    def cast(self, x: Value, dtype: str) -> Value:
        """Return x in ``dtype``."""
        if x.tensor.dtype == dtype:
            return x
        return self.laid(self.op.cast(x.tensor, dtype), x)

    def _torch_to(self, x: Value, *wanted: Any, dtype: Any = None) -> Value:
        for each in (*wanted, dtype):
            if isinstance(each, Value):
                return self.cast(x, each.tensor.dtype)
            if isinstance(each, str):
                return self.cast(x, each)
        return x

    def _torch_type_as(self, x: Value, other: Value) -> Value:
        return self.cast(x, other.tensor.dtype)

    def _torch_float(self, x: Value) -> Value:
        return self.cast(x, "float32")

    def _torch_bfloat16(self, x: Value) -> Value:
        return self.cast(x, "bfloat16")

    def _torch_int(self, x: Value) -> Value:
        return self.cast(x, "int32")

    def _torch_long(self, x: Value) -> Value:
        return self.cast(x, "int64")

    def _torch_bool(self, x: Value) -> Value:
        return self.cast(x, "bool")

    def unary(self, name: str, x: Value) -> Value:
        """Return a function of each element of x."""
        if name in FLOAT32:
            x = self.in_float32(x)
        saved = (x.tensor,) if name in SAVES_INPUT else ()
        tensor = self.tape.record(
            name,
            (x.tensor,),
            lambda g, _: (self.tape.like(g),),
            saved,
            lambda: self.tape.like(x.tensor),
            saved_output=name in SAVES_OUTPUT,
        )
        return self.laid(tensor, x)

    def _torch_bloom_gelu(self, x: Value) -> Value:
        """Return `GeLUFunction` of BLOOM, which saves x: x · 0.5 · (1 + tanh(0.8 · x · (1 + 0.04 · x · x)))."""
        tape, tensor = self.tape, x.tensor

        def forward() -> Tensor:
            half, scaled = tape.like(tensor), tape.like(tensor)
            power = tape.like(tensor)
            power = tape.like(power)
            power = tape.like(power)
            product = tape.like(scaled)
            del scaled, power
            product = tape.like(product)
            product = tape.like(product)
            result = tape.like(product)
            del half, product
            return result

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # bloom_gelu_back, whose tanh lives to its end
            tanh = tape.like(g)
            half, rest = tape.like(g), tape.like(g)
            power = tape.like(g)
            power = tape.like(power)
            rest = tape.like(rest)
            del power
            first = tape.like(half)
            del half, rest
            second = tape.like(g)
            total = tape.like(first)
            del first, second
            result = tape.like(g)
            del tanh, total
            return (result,)

        return self.laid(tape.record("gelu", (tensor,), backward, (tensor,), forward), x)

    def _torch_pow(self, x: Any, exponent: Any = 2) -> Value:
        if not isinstance(x, Value):
            return self.unary("__rpow__", exponent)
        if isinstance(exponent, Value):
            return self.fresh(self.joint(x, exponent), x.tensor.dtype)
        return self.laid(self.op.power(x.tensor), x)

    def _torch_rsqrt(self, x: Value) -> Value:
        x = self.in_float32(x)
        return self.laid(self.op.rsqrt(x.tensor), x)

    def in_float32(self, x: Value) -> Value:
        """Return x as CUDA's autocast gives it to a function that it runs in float32."""
        return self.cast(x, "float32") if self.autocast_widens else x

    @property
    def autocast_widens(self) -> bool:
        """Whether CUDA's autocast is active, which runs some functions in float32."""
        return self.op.autocast is not None and self.op.backend == "cuda"

    def _torch_dropout(self, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
        return self.laid(self.op.dropout(x.tensor, p), x) if training and p else x

    def comparison(self, x: Any, other: Any = None) -> Value:
        """Return the result of a comparison, a boolean for each element."""
        first = x if isinstance(x, Value) else other
        shape = self.joint(first, other) if isinstance(other, Value) else first.shape
        return self.fresh(shape, "bool")

    def _torch_masked_fill(self, x: Value, mask: Value, value: Any) -> Value:
        shape = self.joint(x, mask)
        if shape != x.shape:
            if x.tensor.requires_grad:
                raise Unsupported("a mask that widens what it fills")
            return self.fresh(shape, x.tensor.dtype)
        # masked_fill: grad.masked_fill(mask, 0), which saves the mask
        tensor = self.tape.record(
            "masked_fill",
            (x.tensor,),
            lambda g, _: (self.tape.like(g),),
            (mask.tensor,),
            lambda: self.tape.like(x.tensor),
        )
        return self.laid(tensor, x)

    def _torch_tril(self, x: Value, diagonal: Any = 0) -> Value:
        """Return the triangle of x."""
        if x.tensor.dtype == "bool":
            return self.fresh(x.shape, "bool")
        # tril: grad.tril(diagonal)
        tensor = self.tape.record(
            "triangle", (x.tensor,), lambda g, _: (self.tape.like(g),), (), lambda: self.tape.like(x.tensor)
        )
        return self.laid(tensor, x)

    _torch_triu = _torch_tril

    def _torch_where(self, condition: Value, a: Any, b: Any) -> Value:
        values = [each for each in (a, b) if isinstance(each, Value)]
        if not values:
            raise Unsupported("indices of a condition")
        shape = condition.shape
        for each in values:
            shape = self.joint(Value(condition.tensor, shape, self.contiguous(shape)), each)
        dtype = values[0].tensor.dtype
        n, symbols = elements(shape)
        shapes = [each.shape for each in values]

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # where: self: where(condition, grad, 0); other: where(condition, 0, grad)
            return tuple(self._to_operand(self.tape.like(g), shape, own) for own in shapes)

        tensors = tuple(each.tensor for each in values)
        return Value(
            self.tape.record("where", tensors, backward, (condition.tensor,), lambda: self.tape.new(symbols, n, dtype)),
            shape,
            self.contiguous(shape),
        )

    def _binary(
        self, name: str, a: Value, b: Value, gradients: OperandGradients, saved: tuple[Tensor, ...] = ()
    ) -> Value:
        """Return operation ``name`` of a and b, broadcast to each other, which saves ``saved``.

        ``gradients`` returns those of a and b in the shape of the result; None for one that needs none. It must not
        refer to a and b, since the node would keep them.
        """
        shape = self.joint(a, b)
        numbers = self.sizes.numbers(shape)
        strides = elementwise(numbers, *((self.sizes.numbers(x.shape), x.strides) for x in (a, b)))
        shapes, dtype = (a.shape, b.shape), self._promoted(a, b)
        n, symbols = elements(shape)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # A broadcast operand sums its gradient to its own shape.
            return tuple(
                None if gradient is None else self._to_operand(gradient, shape, own)
                for gradient, own in zip(gradients(g, shape), shapes, strict=True)
            )

        tensors = a.tensor, b.tensor
        return Value(
            self.tape.record(name, tensors, backward, saved, lambda: self.tape.new(symbols, n, dtype)), shape, strides
        )

    @staticmethod
    def _beside_number(a: Any, b: Any) -> Value | None:
        """Return the tensor among a and b if the other is a number; None if both are tensors."""
        if isinstance(a, Value):
            return None if isinstance(b, Value) else a
        tensor: Value = b
        return tensor

    def _torch_add(self, a: Any, b: Any, alpha: Any = 1) -> Value:
        x = self._beside_number(a, b)
        if x is not None:
            return self.laid(self.op.shift(x.tensor), x)
        needs = a.tensor.requires_grad, b.tensor.requires_grad
        # add: self: grad; other: grad
        return self._binary("add", a, b, lambda g, _: tuple(g.passed_on() if need else None for need in needs))

    def _torch_sub(self, a: Any, b: Any) -> Value:
        x = self._beside_number(a, b)
        if x is not None:
            return self.laid(self.op.shift(x.tensor) if x is a else self.op.scale(x.tensor), x)
        a_needs, b_needs = a.tensor.requires_grad, b.tensor.requires_grad
        # sub: self: grad; other: -grad
        return self._binary(
            "sub", a, b, lambda g, _: (g.passed_on() if a_needs else None, self.tape.like(g) if b_needs else None)
        )

    def _torch_mul(self, a: Any, b: Any) -> Value:
        x = self._beside_number(a, b)
        if x is not None:
            return self.laid(self.op.scale(x.tensor), x)
        a_needs, b_needs = a.tensor.requires_grad, b.tensor.requires_grad
        of_a, of_b = (Layout(self.sizes.numbers(each.shape), each.strides) for each in (a, b))

        def gradients(g: Tensor, shape: Shape) -> tuple[Tensor | None, ...]:
            # mul: other: grad * self, self: grad * other
            whole = self.layout(g, shape)

            def product(other: Layout) -> Tensor:
                result = self.tape.like(g)
                result.layout = Layout(whole.shape, elementwise(whole.shape, whole, other))
                return result

            to_b = product(of_a) if b_needs else None
            return product(of_b) if a_needs else None, to_b

        saved = (*((b.tensor,) if a_needs else ()), *((a.tensor,) if b_needs else ()))
        return self._binary("multiply", a, b, gradients, saved)

    def _torch_div(self, a: Any, b: Any, rounding_mode: Any = None) -> Value:
        x = self._beside_number(a, b)
        if x is not None:
            return self.laid(self.op.scale(x.tensor), x)
        needs = a.tensor.requires_grad, b.tensor.requires_grad
        saved = (*((b.tensor,) if any(needs) else ()), *((a.tensor,) if needs[1] else ()))
        # div: self: grad / other; other: -grad * ((self / other) / other)
        return self._binary(
            "division", a, b, lambda g, _: tuple(self.tape.like(g) if need else None for need in needs), saved
        )

    def larger(self, a: Value, b: Value) -> Value:
        """Return the larger, or the smaller, of a and b, elementwise."""
        needs = a.tensor.requires_grad, b.tensor.requires_grad

        def gradient(g: Tensor) -> Tensor:
            # maximum: where(self == other, grad / 2, grad).masked_fill_(self < other, 0)
            equal = self.tape.like(g, "bool")
            half = self.tape.like(g)
            result = self.tape.like(g)
            del equal, half
            smaller = self.tape.like(g, "bool")
            del smaller
            return result

        saved = (a.tensor, b.tensor) if any(needs) else ()
        return self._binary("maximum", a, b, lambda g, _: tuple(gradient(g) if need else None for need in needs), saved)

    _torch_maximum = _torch_minimum = larger

    def _torch_exponential_(self, x: Value, *_: Any, **__: Any) -> Value:
        return x  # filled in place

    _torch_uniform_ = _torch_normal_ = _torch_fill_ = _torch_zero_ = _torch_exponential_

    def _torch___floordiv__(self, x: Value, other: Any) -> Value:
        return self.fresh(x.shape, x.tensor.dtype)

    _torch_remainder = _torch___mod__ = _torch___floordiv__

    def _torch_add_(self, a: Value, b: Any, alpha: Any = 1) -> Value:
        if not isinstance(b, Value):
            return a
        needs = a.tensor.requires_grad, b.tensor.requires_grad
        shapes = a.shape, b.shape

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # add: self: grad; other: grad
            return (
                g.passed_on() if needs[0] else None,
                self._to_operand(g.passed_on(), *shapes) if needs[1] else None,
            )

        same = a.tensor.without_history()
        return Value(self.tape.record("add", (a.tensor, b.tensor), backward, (), lambda: same), a.shape, a.strides)

    def _torch_mul_(self, a: Value, b: Any) -> Value:
        return self._torch_mul(a, b)  # autograd saves a clone of what is overwritten

    def _torch_div_(self, a: Value, b: Any) -> Value:
        return self._torch_div(a, b)
