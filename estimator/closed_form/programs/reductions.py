"""Functions over a dimension: sums, means, softmaxes, norms."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.closed_form.autograd import Gradients, Tensor
from lorabench.estimator.closed_form.layout import (
    UNIT,
    Layout,
    contiguous,
    elements,
)
from lorabench.estimator.closed_form.programs.elementwise import Elementwise
from lorabench.estimator.closed_form.programs.values import FLOATING, Value


class Reductions(Elementwise):
    """Functions over a dimension."""

    def _torch_mean(self, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
        return self._reduced("mean", x, dim, keepdim, expanded=False)

    def _torch_sum(self, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
        return self._reduced("sum", x, dim, keepdim, expanded=True, dtype=dtype or self._wide(x))

    def _wide(self, x: Value) -> str | None:
        """Return the dtype that CUDA's autocast asks of a sum of x."""
        return "float32" if self.autocast_widens and x.tensor.dtype in FLOATING else None

    def _reduced(self, name: str, x: Value, dim: Any, keepdim: bool, *, expanded: bool, dtype: Any = None) -> Value:
        rank = len(x.shape)
        dims = (
            {each % rank for each in (dim if isinstance(dim, list) else [dim])} if dim is not None else set(range(rank))
        )
        kept = tuple(UNIT if number in dims else size for number, size in enumerate(x.shape))
        shape = kept if keepdim else tuple(size for number, size in enumerate(x.shape) if number not in dims)
        n, symbols = elements(shape)
        dtype = dtype or x.tensor.dtype

        was = x.shape

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # mean: grad.expand(self.sizes()) / n; sum: grad.expand(self.sizes()), a view
            if not expanded:
                return (self.new_gradient(was, g.dtype),)
            own = self.sizes.numbers(was)
            steps = iter(contiguous(self.sizes.numbers(shape)))
            strides = []
            for number in range(rank):
                step = next(steps) if keepdim or number not in dims else 0
                strides.append(0 if number in dims else step)
            return (self.viewed_gradient(g, was, Layout(own, tuple(strides))),)

        return Value(
            self.tape.record(name, (x.tensor,), backward, (), lambda: self.tape.new(symbols, n, dtype)),
            shape,
            self.contiguous(shape),
        )

    def _torch_softmax(self, x: Value, dim: int = -1, _stacklevel: int = 3, dtype: Any = None) -> Value:
        if dtype is None:
            dtype = "float32" if self.autocast_widens else x.tensor.dtype
        return self.laid(self.op.softmax(x.tensor, dtype), x)

    def _torch_layer_norm(
        self, x: Value, normalized_shape: Any, weight: Value | None = None, bias: Value | None = None, eps: Any = 1e-5
    ) -> Value:
        tensors = (None if each is None else each.tensor for each in (weight, bias))
        return self.laid(self.op.layer_norm(x.tensor, *tensors), x)

    def _torch_rms_norm(self, x: Value, normalized_shape: Any, weight: Value | None = None, eps: Any = None) -> Value:
        return self.laid(self.op.fused_rms_norm(x.tensor, None if weight is None else weight.tensor), x)

    def _torch_logsumexp(self, x: Value, dim: Any, keepdim: bool = False) -> Value:
        x = self.in_float32(x)
        at = (dim[0] if isinstance(dim, list) else dim) % len(x.shape)
        shape = (*x.shape[:at], *((UNIT,) if keepdim else ()), *x.shape[at + 1 :])
        n, symbols = elements(shape)
        tensor, dtype = x.tensor, x.tensor.dtype

        def forward() -> Tensor:
            # logsumexp_out_impl: amax, and exp_ of the differences
            result = self.tape.new(symbols, n, dtype)
            largest = self.tape.new(symbols, n, dtype)
            differences = self.tape.like(tensor)
            del largest, differences
            return result

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # logsumexp: grad * (self - result).exp()
            differences = self.tape.like(saved[0])
            powers = self.tape.like(saved[0])
            del differences
            product = self.tape.like(saved[0])
            del powers
            return (product,)

        return Value(
            self.tape.record("logsumexp", (tensor,), backward, (tensor,), forward, saved_output=True),
            shape,
            self.contiguous(shape),
        )

    def _torch_max(self, x: Value, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, Value):
            return self.larger(x, dim)
        if dim is None:
            return self.fresh((), x.tensor.dtype)
        at = dim % len(x.shape)
        shape = (*x.shape[:at], *((UNIT,) if keepdim else ()), *x.shape[at + 1 :])
        index = self.fresh(shape, "int64")
        # max: value_selecting_reduction_backward(grad, dim, indices, sizes), which scatters grad into zeros.
        return [self._gathered("max", x, shape, (index.tensor,)), index]

    _torch_min = _torch_max

    def _torch_cumsum(self, x: Value, dim: Any = -1, dtype: Any = None) -> Value:
        own = x.tensor.dtype if x.tensor.dtype in FLOATING else "int64"
        dtype = dtype or self._wide(x) or own
        n, symbols = elements(x.shape)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # cumsum: cumsum_backward(grad, dim): grad.flip(dim).cumsum(dim).flip(dim)
            flipped = self.tape.like(g)
            summed = self.tape.like(g)
            del flipped
            return (self.tape.like(summed),)

        tensor = self.tape.record("cumsum", (x.tensor,), backward, (), lambda: self.tape.new(symbols, n, dtype))
        return self.laid(tensor, x)
