"""Functions that copy elements: contiguous copies, concatenations, repetitions."""

from __future__ import annotations

from functools import reduce
from typing import Any

from lorabench.estimator.closed_form.autograd import Gradients, Tensor, promote
from lorabench.estimator.closed_form.layout import (
    UNIT,
    Dim,
    Layout,
    as_dim,
    elements,
    is_contiguous,
)
from lorabench.estimator.closed_form.programs.values import Parts, Value
from lorabench.estimator.closed_form.programs.views import Views


class Copies(Views):
    """Functions that copy."""

    def _torch_contiguous(self, x: Value) -> Value:
        return x if is_contiguous(self.sizes.numbers(x.shape), x.strides) else self._torch_clone(x)

    def _torch_cat(self, parts: list[Value], dim: int = 0) -> Value:
        dim %= len(parts[0].shape)
        if isinstance(parts, Parts):
            total = parts.total.times(parts[0].shape[dim])
        else:
            total = reduce(Dim.plus, (part.shape[dim] for part in parts))
        shape = (*parts[0].shape[:dim], total, *parts[0].shape[dim + 1 :])
        shapes = [part.shape for part in parts]
        dtype = parts[0].tensor.dtype
        for part in parts[1:]:
            dtype = promote(dtype, part.tensor.dtype)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # cat: grad.narrow(dim, start, length) for each part: views.
            layout = self.layout(g, shape)
            return tuple(
                self.viewed_gradient(g, own, Layout(self.sizes.numbers(own), layout.strides)) for own in shapes
            )

        n, symbols = elements(shape)
        tensors = tuple(part.tensor for part in parts)
        del parts
        return Value(
            self.tape.record("cat", tensors, backward, (), lambda: self.tape.new(symbols, n, dtype)),
            shape,
            self.contiguous(shape),
        )

    def _torch_pad(self, x: Value, pads: list[Any], mode: Any = None, value: Any = None) -> Value:
        """Return x with so many zeros before and after each dimension, from the last one on."""
        shape = list(x.shape)
        for at, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
            for more in (before, after):
                if more:
                    shape[-1 - at] = shape[-1 - at].plus(as_dim(more))
        # constant_pad_nd: constant_pad_nd of grad with the negated padding, a copy; without padding, both are clones.
        return self._gathered("pad", x, tuple(shape), ())

    def _torch_stack(self, parts: list[Value], dim: int = 0) -> Value:
        at = dim % (len(parts[0].shape) + 1)
        rows = Parts(self._torch_unsqueeze(part, at) for part in parts)
        rows.total = parts.total if isinstance(parts, Parts) else Dim(len(parts))
        return self._torch_cat(rows, at)

    def _torch_repeat(self, x: Value, *times: Any) -> Value:
        wanted = times[0] if isinstance(times[0], list) else times
        rank = len(wanted)
        own = (*(UNIT,) * (rank - len(x.shape)), *x.shape)
        shape = tuple(size.times(as_dim(each)) for size, each in zip(own, wanted, strict=True))
        return self._gathered("repeat", x, shape, ())

    def _torch_repeat_interleave(self, x: Value, repeats: Any, dim: int, output_size: Any = None) -> Value:
        times = as_dim(repeats)
        dim %= len(x.shape)
        shape = (*x.shape[:dim], x.shape[dim].times(times), *x.shape[dim + 1 :])
        # expand and clone: sum_to(grad, self.sizes())
        return self._gathered("repeat", x, shape, ())

    def _torch_repeat_heads(self, x: Value, times: Any) -> Value:
        """Return keys or values (B, H, S, d) repeated for each query head that shares them (`repeat_kv`)."""
        n = times.n if isinstance(times, Dim) else times
        batch, heads, length, width = x.shape
        if n == 1:
            return x
        spread = self._torch_expand(self._torch_unsqueeze(x, 2), batch, heads, Dim(n), length, width)
        return self.reshaped(spread, (batch, Dim(heads.n * n), length, width), copies=True)
