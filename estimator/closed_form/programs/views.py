"""Functions that return views: reshapes, permutations, slices, splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.estimator.closed_form.autograd import Gradients, Node, Tensor
from lorabench.estimator.closed_form.layout import (
    UNIT,
    Dim,
    Layout,
    Shape,
    Strides,
    Unsupported,
    as_dim,
    contiguous,
    elements,
    viewed,
)
from lorabench.estimator.closed_form.programs.values import Value, Values
from lorabench.estimator.closed_form.sizes import ONE


class Views(Values):
    """Functions that return views."""

    def permuted(self, x: Value, order: Sequence[int]) -> Value:
        """Return x with its dimensions in ``order``."""
        rank = len(x.shape)
        order = [dim % rank for dim in order]
        back = sorted(range(rank), key=lambda dim: order[dim])
        shape, strides = tuple(x.shape[dim] for dim in order), tuple(x.strides[dim] for dim in order)

        was = x.shape

        def backward(g: Tensor) -> Tensor:
            # transpose: grad.transpose(dim0, dim1); permute: permute_backwards(grad, dims)
            layout = self.layout(g, shape)
            turned = Layout(tuple(layout.shape[dim] for dim in back), tuple(layout.strides[dim] for dim in back))
            return self.viewed_gradient(g, was, turned)

        return self.view(x, shape, strides, "permute", backward)

    def _torch_transpose(self, x: Value, first: int, second: int) -> Value:
        order = list(range(len(x.shape)))
        order[first], order[second] = order[second], order[first]
        return self.permuted(x, order)

    def _torch_permute(self, x: Value, *order: Any) -> Value:
        return self.permuted(x, order[0] if isinstance(order[0], list) else order)

    def _torch_T(self, x: Value) -> Value:  # noqa: N802 - torch's name
        return self.permuted(x, list(reversed(range(len(x.shape)))))

    def _torch_mT(self, x: Value) -> Value:  # noqa: N802 - torch's name
        return self._torch_transpose(x, -2, -1)

    def _torch_data(self, x: Value) -> Value:
        return Value(x.tensor.without_history(), x.shape, x.strides)

    _torch_detach = _torch_data

    def _torch_reshape(self, x: Value, *to: Any, shape: Any = None) -> Value:
        return self.reshaped(x, self.whole_shape(x, to or (shape,)), copies=True)

    def _torch_view(self, x: Value, *to: Any) -> Value:
        return self.reshaped(x, self.whole_shape(x, to), copies=False)

    def _torch_view_as(self, x: Value, other: Value) -> Value:
        return self.reshaped(x, other.shape, copies=False)

    def _torch_flatten(self, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
        rank = len(x.shape)
        start, end = start_dim % rank, end_dim % rank
        return self.reshaped(
            x, (*x.shape[:start], elements(x.shape[start : end + 1]), *x.shape[end + 1 :]), copies=True
        )

    def whole_shape(self, x: Value, to: Sequence[Any]) -> Shape:
        """Return the shape that a call asks for, with -1 resolved."""
        if len(to) == 1 and isinstance(to[0], list):
            to = to[0]
        wanted = [as_dim(each) for each in to]
        known = elements([dim for dim in wanted if dim.n != -1])
        return tuple(elements(x.shape).divided(known) if dim.n == -1 else dim for dim in wanted)

    def reshaped(self, x: Value, shape: Shape, *, copies: bool) -> Value:
        """Return x in ``shape``; a copy if it is no view and may be one."""
        numbers = self.sizes.numbers(shape)
        strides = viewed(self.sizes.numbers(x.shape), x.strides, numbers)
        if strides is None:
            if not copies:
                raise Unsupported("a view that torch would refuse")
            return self.reshaped(self._torch_clone(x), shape, copies=False)

        was = x.shape

        def backward(g: Tensor) -> Tensor:
            # view: grad.reshape(self.sizes())
            layout, own = self.layout(g, shape), self.sizes.numbers(was)
            back = viewed(layout.shape, layout.strides, own)
            if back is None:
                return self.new_gradient(was, g.dtype)
            return self.viewed_gradient(g, was, Layout(own, back))

        return self.view(x, shape, strides, "view", backward)

    def _torch_unsqueeze(self, x: Value, dim: int) -> Value:
        at = dim % (len(x.shape) + 1)
        step = x.strides[at] * self.sizes.number(x.shape[at]) if at < len(x.shape) else 1
        shape, strides = (*x.shape[:at], UNIT, *x.shape[at:]), (*x.strides[:at], step, *x.strides[at:])
        return self._resized(x, shape, strides)

    def _torch_squeeze(self, x: Value, dim: int | None = None) -> Value:
        dims = range(len(x.shape)) if dim is None else (dim % len(x.shape),)
        for at in reversed(dims):
            if self.sizes.number(x.shape[at]) == 1 and x.shape[at].symbols is ONE:
                x = self._resized(x, x.shape[:at] + x.shape[at + 1 :], x.strides[:at] + x.strides[at + 1 :])
        return x

    def _resized(self, x: Value, shape: Shape, strides: Strides) -> Value:
        """Return a view of x with or without dimensions of size one."""

        was = x.shape

        def backward(g: Tensor) -> Tensor:
            layout, own = self.layout(g, shape), self.sizes.numbers(was)
            back = viewed(layout.shape, layout.strides, own)
            return self.viewed_gradient(g, was, Layout(own, back or contiguous(own)))

        return self.view(x, shape, strides, "view", backward)

    def _torch_expand(self, x: Value, *to: Any) -> Value:
        wanted = to[0] if len(to) == 1 and isinstance(to[0], list) else to
        rank = len(wanted)
        own = (*(UNIT,) * (rank - len(x.shape)), *x.shape)
        steps = (*(0,) * (rank - len(x.shape)), *x.strides)
        shape, strides = [], []
        for size, step, dim in zip(own, steps, wanted, strict=True):
            whole = as_dim(dim)
            kept = whole.n == -1 or self.sizes.same(whole, size)
            shape.append(size if whole.n == -1 else self._wider(size, whole))
            strides.append(step if kept else 0)
        target = elements(x.shape)

        was = x.shape

        def backward(g: Tensor) -> Tensor:
            # expand: at::sum_to(grad, self.sizes())
            if self.sizes.number(elements(tuple(shape))) == self.sizes.number(target):
                return g.passed_on()
            return self.new_gradient(was, g.dtype)

        return self.view(x, tuple(shape), tuple(strides), "expand", backward)

    _torch_broadcast_to = _torch_expand

    def _torch_expand_as(self, x: Value, other: Value) -> Value:
        return self._torch_expand(x, list(other.shape))

    def _torch_getitem(self, x: Value, index: Any) -> Value:
        parts = index if isinstance(index, list) and not (index and index[0] in ("slice", "...")) else [index]
        given = sum(1 for part in parts if part is not None and part != ["..."])
        missing = len(x.shape) - given
        whole: list[Any] = []
        for part in parts:
            whole += [["slice", None, None, None]] * missing if part == ["..."] else [part]
        if ["..."] not in parts:
            whole += [["slice", None, None, None]] * missing
        shape: list[Dim] = []
        strides: list[int] = []
        at, cut, added = 0, False, []
        for part in whole:
            if part is None:
                added.append(len(shape))
                shape.append(UNIT)
                strides.append(0)
                continue
            size, step = x.shape[at], x.strides[at]
            at += 1
            if isinstance(part, Value):
                if (
                    part.tensor.dtype == "bool"
                    or len(whole) != len(x.shape)
                    or at != 1
                    or any(each != ["slice", None, None, None] for each in whole[1:])
                ):
                    raise Unsupported("an index of values")
                return self.indexed(x, part)
            if isinstance(part, list) and part[0] not in ("slice", "..."):
                if whole.count(["slice", None, None, None]) != len(whole) - 1:
                    raise Unsupported("an index of numbers beside other parts")
                return self._taken(x, at - 1, len(part))
            if isinstance(part, list) and part[0] == "slice":
                taken = self._slice(size, *part[1:])
                cut = cut or not self.sizes.same(taken, size)
                stride = part[3].n if isinstance(part[3], Dim) else part[3] or 1
                shape.append(taken)
                strides.append(step * stride)
            else:
                cut = True  # select
        if not cut and not added:
            return self._alias(x, tuple(shape))

        was = x.shape

        def backward(g: Tensor) -> Tensor:
            if not cut:
                layout, own = self.layout(g, tuple(shape)), self.sizes.numbers(was)
                kept = tuple(s for number, s in enumerate(layout.strides) if number not in added)
                return self.viewed_gradient(g, was, Layout(own, kept))
            # slice, select: zeros of the whole shape, with grad written into the slice.
            return self.new_gradient(was, g.dtype)

        return self.view(x, tuple(shape), tuple(strides), "slice", backward)._replace(base=x.tensor, base_shape=x.shape)

    def _slice(self, size: Dim, start: Any, stop: Any, step: Any) -> Dim:
        if isinstance(start, Dim) and start.n < 0 and stop is None and step is None:
            return Dim(-start.n, start.symbols)
        whole = self.sizes.number(size)
        begin, end = (None if bound is None else self._position(bound, size) for bound in (start, stop))
        if (begin is None or begin == UNIT._replace(n=0)) and end is None and step in (None, 1):
            return size
        stride = step.n if isinstance(step, Dim) else step or 1
        begin = Dim(0) if begin is None else begin
        end = size if end is None else end
        if self.sizes.number(end) > whole:
            end = size
        length = end if begin.n == 0 else end.plus(Dim(-begin.n, begin.symbols))
        return length if stride == 1 else Dim(-(-length.n // stride), length.symbols)

    def _position(self, bound: Any, size: Dim) -> Dim:
        dim = as_dim(bound)
        if dim.n >= 0:
            return dim
        return size.plus(dim)

    def _alias(self, x: Value, shape: Shape) -> Value:
        """Return x as it is, as a new view of an equal ``shape``."""

        def backward(g: Tensor) -> Tensor:
            return g.passed_on()

        return self.view(x, shape, x.strides, "alias", backward)

    def indexed(self, x: Value, index: Value) -> Value:
        """Return the rows of x that ``index`` selects; it sorts the indices in backward (`Indexing.gather`)."""
        shape = (*index.shape, *x.shape[1:])
        rows = elements(index.shape)
        n, symbols = elements(shape)
        if rows.symbols is not symbols:
            raise Unsupported(f"rows {index.shape} of {x.shape}")
        tensor = x.tensor
        whole = elements(x.shape)
        tensor.tokens, tensor.features = whole.symbols, whole.n
        return Value(self.op.gather(tensor, symbols, n, index.tensor, rows.n), shape, self.contiguous(shape))

    def _taken(self, x: Value, dim: int, count: int) -> Value:
        """Return a new tensor of ``count`` entries of x along ``dim``, which the program lists."""
        shape, was = (*x.shape[:dim], Dim(count), *x.shape[dim + 1 :]), x.shape
        n, symbols = elements(shape)
        index = self.tape.new(ONE, count, "int64")

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # index: index_backward(grad.new_zeros(sizes), indices, grad)
            return (self.new_gradient(was, g.dtype),)

        tensor, dtype = x.tensor, x.tensor.dtype
        del x
        taken = self.tape.record("gather", (tensor,), backward, (index,), lambda: self.tape.new(symbols, n, dtype))
        return Value(taken, shape, self.contiguous(shape))

    def _torch_chunk(self, x: Value, chunks: int, dim: int = 0) -> list[Value]:
        size = x.shape[dim]
        part = Dim(-(-size.n // chunks), size.symbols)
        return self._split(
            x, [part] * (size.n // part.n) + ([Dim(size.n % part.n, size.symbols)] if size.n % part.n else []), dim
        )

    def _torch_split(self, x: Value, sizes: Any, dim: int = 0, *, split_size: Any = None) -> list[Value]:
        if isinstance(sizes, list):
            return self._split(x, [as_dim(each) for each in sizes], dim)
        part = as_dim(sizes)
        whole = x.shape[dim]
        return self._split(x, [part] * (whole.n // part.n), dim)

    def _split(self, x: Value, parts: list[Dim], dim: int) -> list[Value]:
        dim %= len(x.shape)
        shapes = [(*x.shape[:dim], part, *x.shape[dim + 1 :]) for part in parts]
        views = []
        for shape in shapes:
            n, symbols = elements(shape)
            tensor = x.tensor.view(n)
            tensor.tokens = symbols
            views.append(tensor)
        if x.tensor.requires_grad and not self.tape.unrecorded:
            was = x.shape

            def backward(gradients: list[Tensor], _: list[Tensor]) -> Gradients:
                # split: cat(grads)
                return (self.new_gradient(was, gradients[0].dtype),)

            node = Node(self.tape, "split", backward, (x.tensor,), (), outputs=len(views))
            for number, tensor in enumerate(views):
                tensor.node, tensor.output = node, number
        return [Value(tensor, shape, x.strides) for tensor, shape in zip(views, shapes, strict=True)]

    def _torch_copy_(self, x: Value, source: Value) -> Value:
        """Write ``source`` into the slice x of a tensor, whose history then has it (`CopySlices`)."""
        base = x.base
        if base is None:
            raise Unsupported("a copy into a tensor that is no slice")
        if self.tape.unrecorded or not (base.requires_grad or source.tensor.requires_grad):
            return x
        before = base.without_history()
        before.node, before.leaf, before.output = base.node, base.leaf, base.output
        whole, part, needs = x.base_shape, x.shape, (base.requires_grad, source.tensor.requires_grad)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # CopySlices: a copy of grad, a clone of its slice for the source, and zeros in its place.
            result = self.new_gradient(whole, g.dtype)
            to_source = self.new_gradient(part, g.dtype)
            zeros = self.new_gradient(part, g.dtype)
            del zeros
            return result if needs[0] else None, to_source if needs[1] else None

        base.node, base.leaf, base.output = Node(self.tape, "copy", backward, (before, source.tensor), ()), None, 0
        return x

    def _torch_polar(self, size: Value, angle: Value) -> Value:
        return self.fresh(angle.shape, "complex64")

    def _torch_view_as_complex(self, x: Value) -> Value:
        return self._reinterpreted(x, x.shape[:-1], tuple(step // 2 for step in x.strides[:-1]), "complex64")

    def _torch_view_as_real(self, x: Value) -> Value:
        return self._reinterpreted(x, (*x.shape, Dim(2)), (*(step * 2 for step in x.strides), 1), "float32")

    def _reinterpreted(self, x: Value, shape: Shape, strides: Strides, dtype: str) -> Value:
        """Return x with pairs of real numbers as complex ones, or the other way round."""
        was, real = x.shape, x.tensor.dtype

        def backward(g: Tensor) -> Tensor:
            # view_as_complex: view_as_real(grad); view_as_real: view_as_complex(grad)
            passed = self.viewed_gradient(g, was, Layout(self.sizes.numbers(was), self.contiguous(was)))
            passed.dtype = real
            return passed

        found = self.view(x, shape, strides, "view", backward)
        found.tensor.dtype = dtype
        return found

    def _torch_unbind(self, x: Value, dim: int = 0) -> list[Value]:
        at = dim % len(x.shape)
        count = x.shape[at].n
        parts = self._split(x, [UNIT] * count, at)
        return [
            Value(part.tensor, part.shape[:at] + part.shape[at + 1 :], part.strides[:at] + part.strides[at + 1 :])
            for part in parts
        ]
