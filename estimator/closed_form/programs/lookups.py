"""Lookups, selections, and tensors of constants."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.closed_form.autograd import Gradients, Tensor
from lorabench.estimator.closed_form.layout import (
    Dim,
    Unsupported,
    as_dim,
    elements,
)
from lorabench.estimator.closed_form.programs.elementwise import Elementwise
from lorabench.estimator.closed_form.programs.values import Value
from lorabench.estimator.closed_form.sizes import (
    POSITION_INDICES,
    POSITION_INDICES_OF_ALL,
    POSITION_PARTS,
    POSITION_PARTS_OF_ALL,
    TOKENS,
    S,
)

POSITIONS = {
    Dim(1, S): (POSITION_INDICES, POSITION_PARTS),
    Dim(1, TOKENS): (POSITION_INDICES_OF_ALL, POSITION_PARTS_OF_ALL),
}
"""Rows that are looked up in a table of positions → the scratch of its backward."""


class Lookups(Elementwise):
    """Functions that select elements or fill tensors."""

    def _torch_embedded(self, x: Value) -> list[Value]:
        """Take x as the output of the embedding module."""
        self.m.as_input(self.flat(x))
        return []

    def _torch_full_like(self, x: Value, value: Any, dtype: Any = None) -> Value:
        return self.like(x, dtype)

    def _torch_gather(self, x: Value, dim: int, index: Value) -> Value:
        # gather: gather_backward(grad, self, dim, index): zeros of self, to which grad is scattered
        return self._gathered("gather", x, index.shape, (index.tensor,))

    def _torch_topk(self, x: Value, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> list[Value]:  # noqa: A002 - torch's names
        count = as_dim(k)
        at = dim % len(x.shape)
        shape = (*x.shape[:at], count, *x.shape[at + 1 :])
        index = self.fresh(shape, "int64")
        # topk: value_selecting_reduction_backward(grad, dim, indices, sizes), which scatters grad into zeros.
        return [self._gathered("topk", x, shape, (index.tensor,)), index]

    def _torch_sort(self, x: Value, dim: int = -1, descending: bool = False) -> list[Value]:
        index = self.fresh(x.shape, "int64")
        return [self._gathered("sort", x, x.shape, (index.tensor,)), index]

    def _torch_argsort(self, x: Value, dim: int = -1, descending: bool = False) -> Value:
        return self.fresh(x.shape, "int64")

    def _torch_index_select(self, x: Value, dim: int, index: Value) -> Value:
        at = dim % len(x.shape)
        # index_select: index_select_backward(grad, self.sizes(), dim, index): zeros of self, to which grad is added
        return self._gathered(
            "index_select", x, (*x.shape[:at], elements(index.shape), *x.shape[at + 1 :]), (index.tensor,)
        )

    def _torch_scatter(self, x: Value, dim: int, index: Value, source: Any = None, **_: Any) -> Value:
        other = source if isinstance(source, Value) else None
        needs = x.tensor.requires_grad, other is not None and other.tensor.requires_grad
        shape, shapes, dtype = x.shape, (x.shape, index.shape), x.tensor.dtype
        n, symbols = elements(shape)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # scatter: self: grad.scatter(dim, index, 0); src: grad.gather(dim, index)
            found = [self.new_gradient(own, g.dtype) if need else None for own, need in zip(shapes, needs, strict=True)]
            return tuple(found if other_given else found[:1])

        other_given = other is not None
        tensors = (x.tensor, *(() if other is None else (other.tensor,)))
        del other, source
        return Value(
            self.tape.record("scatter", tensors, backward, (index.tensor,), lambda: self.tape.new(symbols, n, dtype)),
            shape,
            self.contiguous(shape),
        )

    def _torch_scatter_(self, x: Value, dim: int, index: Value, source: Any) -> Value:
        if not isinstance(source, Value):
            return x
        needs = x.tensor.requires_grad, source.tensor.requires_grad
        shapes = x.shape, index.shape

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # scatter: self: grad.scatter(dim, index, 0); src: grad.gather(dim, index)
            return tuple(
                self.new_gradient(own, g.dtype) if need else None for own, need in zip(shapes, needs, strict=True)
            )

        same = x.tensor.without_history()
        tensors = x.tensor, source.tensor
        return Value(self.tape.record("scatter", tensors, backward, (index.tensor,), lambda: same), x.shape, x.strides)

    def _torch___setitem__(self, x: Value, index: Any, source: Any) -> list[Value]:
        if isinstance(source, Value) and (x.tensor.requires_grad or source.tensor.requires_grad):
            self._torch_copy_(self._torch_getitem(x, index), source)
        return []

    def _torch_embedding(self, ids: Value, weight: Value, *_: Any, **__: Any) -> Value:
        shape = (*ids.shape, weight.shape[-1])
        if weight.tensor is self.m.weights.get(self.m.spec.embeddings[0].name):
            with self.tape.scope("embedding"):
                return Value(self.op.embedding(weight.tensor, weight.shape[-1].n), shape, self.contiguous(shape))
        rows = elements(ids.shape)
        if rows not in POSITIONS:
            raise Unsupported(f"a lookup of {ids.shape} in another table than that of the tokens")
        table = self.op.embedding(weight.tensor, weight.shape[-1].n, rows.symbols, POSITIONS[rows])
        return Value(table, shape, self.contiguous(shape))

    def _torch_arange(self, *bounds: Any, dtype: Any = "int64") -> Value:
        start, end = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
        first, last = (as_dim(each) for each in (start, end))
        return self.fresh((last.plus(Dim(-first.n, first.symbols)) if first.n else last,), dtype or "int64")

    def filled(self, *shape: Any, dtype: Any = "float32") -> Value:
        """Return a new tensor of a constant."""
        wanted = shape[0] if isinstance(shape[0], list) else shape
        return self.fresh(tuple(as_dim(each) for each in wanted), dtype or "float32")

    _torch_zeros = _torch_ones = _torch_empty = filled

    def _torch_full(self, shape: Any, value: Any, dtype: Any = None) -> Value:
        return self.filled(shape, dtype=dtype)

    def _torch_new_zeros(self, x: Value, *shape: Any, dtype: Any = None) -> Value:
        return self.filled(*shape, dtype=dtype or x.tensor.dtype)

    _torch_new_ones = _torch_new_empty = _torch_new_zeros

    def _torch_tensor(self, *_: Any, dtype: Any = None) -> Value:
        return self.fresh((), dtype or "float32")

    def like(self, x: Value, dtype: Any = None) -> Value:
        """Return a new tensor of the shape of x."""
        return self.fresh(x.shape, dtype or x.tensor.dtype)

    _torch_zeros_like = _torch_ones_like = _torch_empty_like = _torch_rand_like = _torch_randn_like = like

    def _torch_histc(self, x: Value, bins: Any = 100, min: Any = 0, max: Any = 0) -> Value:  # noqa: A002 - torch's names
        return self.fresh((as_dim(bins),), x.tensor.dtype)
