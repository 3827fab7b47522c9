"""Matmuls: linear layers, batched and grouped products."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.closed_form.autograd import Gradients, Tensor
from lorabench.estimator.closed_form.layout import (
    UNIT,
    Dim,
    Unsupported,
    as_dim,
    contiguous,
    elements,
    viewed,
)
from lorabench.estimator.closed_form.programs.elementwise import Elementwise
from lorabench.estimator.closed_form.programs.values import Value
from lorabench.estimator.closed_form.sizes import ONE, Extent
from lorabench.estimator.closed_form.work import Matmul


class Matmuls(Elementwise):
    """Functions that run a matmul."""

    def _torch_linear_module(self, x: Value, path: str, *, apart: bool = False) -> Value:
        """Return the output of a linear layer. ``apart``: its class adds the bias in a step of its own."""
        if path not in self.m.linears:
            raise Unsupported(f"{path} is a linear layer outside the layers")
        linear = self.m.linears[path]
        shape = (*x.shape[:-1], Dim(linear.out_features))
        tensor = self._by_token(x)
        return Value(self.m.linear(path, tensor, apart=apart), shape, self.contiguous(shape))

    def _by_token(self, x: Value) -> Tensor:
        """Return x as a linear layer reads it: (tokens, features)."""
        return self.flat(self._torch_contiguous(x) if not self._foldable(x) else x)

    def _foldable(self, x: Value) -> bool:
        numbers = self.sizes.numbers(x.shape)
        folded = (self.sizes.number(elements(x.shape[:-1])), numbers[-1])
        return viewed(numbers, x.strides, folded) is not None

    def _torch_linear(self, x: Value, weight: Value, bias: Value | None = None) -> Value:
        out = weight.shape[0]
        shape = (*x.shape[:-1], out)
        return Value(
            self.op.linear(self._by_token(x), weight.tensor, out.n, bias=None if bias is None else bias.tensor),
            shape,
            self.contiguous(shape),
        )

    def _torch_matmul(self, a: Value, b: Value) -> Value:
        """Return the batched matmul of a and b, which are expanded to each other's batches (torch's `matmul`)."""
        rank = max(len(a.shape), len(b.shape))
        if min(len(a.shape), len(b.shape)) < 2:
            raise Unsupported("a matmul of vectors")
        second = self._autocast(b)  # autocast casts the last argument first
        first = self._autocast(a)
        del a, b
        batch = tuple(
            self._wider(one, other)
            for one, other in zip(
                (*(UNIT,) * (rank - len(first.shape)), *first.shape[:-2]),
                (*(UNIT,) * (rank - len(second.shape)), *second.shape[:-2]),
                strict=True,
            )
        )
        if rank == 2:
            return self._bmm(first, second)
        whole = elements(batch)
        left = self.reshaped(
            self._torch_expand(first, *batch, *first.shape[-2:]), (whole, *first.shape[-2:]), copies=True
        )
        right = self.reshaped(
            self._torch_expand(second, *batch, *second.shape[-2:]), (whole, *second.shape[-2:]), copies=True
        )
        shape = (*batch, first.shape[-2], second.shape[-1])
        del first, second
        return self.reshaped(self._bmm(left, right), shape, copies=False)

    def _autocast(self, x: Value) -> Value:
        return self.laid(self.op.to_autocast(x.tensor), x) if self.op.autocast is not None else x

    def _torch_bmm(self, a: Value, b: Value) -> Value:
        return self._bmm(self._autocast(a), self._autocast(b))

    def _torch_baddbmm(self, x: Value, batch1: Value, batch2: Value, beta: Any = None, alpha: Any = None) -> Value:
        """Return the batched matmul of ``batch1`` and ``batch2``, times ``alpha``, plus x."""
        second, first, added = self._autocast(batch2), self._autocast(batch1), self._autocast(x)
        if added.tensor.requires_grad:
            raise Unsupported("baddbmm of a sum that requires a gradient")
        return self._bmm(first, second, scaled=alpha is not None)

    def _torch_conv1d(
        self,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = None,
        groups: Any = 1,
    ) -> Value:
        """Return the convolution of x (B, channels, length) with weight (channels, channels / groups, width)."""
        if self.m.recipe.padding:
            raise Unsupported("it masks the padding before a convolution")
        bias = None if bias is None else self._autocast(bias)
        weight, x = self._autocast(weight), self._autocast(x)
        wide = as_dim(padding[0] if isinstance(padding, list) else padding).n
        shape = (x.shape[0], weight.shape[0], x.shape[2].plus(Dim(2 * wide - weight.shape[2].n + 1)))
        n, symbols = elements(shape)
        dtype = x.tensor.dtype
        given = [each for each in (x, weight, bias) if each is not None]
        needs, shapes = [each.tensor.requires_grad for each in given], [each.shape for each in given]

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # convolution: convolution_backward(grad, input, weight, ...), all gradients in one call
            return tuple(
                self.new_gradient(own, dtype) if need else None for own, need in zip(shapes, needs, strict=True)
            )

        tensors = tuple(each.tensor for each in given)
        saved = tensors[:2]
        del given, x, weight, bias
        return Value(
            self.tape.record("conv1d", tensors, backward, saved, lambda: self.tape.new(symbols, n, dtype)),
            shape,
            self.contiguous(shape),
        )

    def _bmm(self, a: Value, b: Value, *, scaled: bool = False) -> Value:
        """Return the batched matmul of a and b. ``scaled``: times a number, by which backward multiplies too."""
        *batch, m, k = a.shape
        n = b.shape[-1]
        shape = (*batch, m, n)
        dtype = a.tensor.dtype
        work = self._extent
        count = work(elements(batch))
        needs = (a.tensor.requires_grad, b.tensor.requires_grad)
        shapes = a.shape, b.shape
        total = elements(shape)

        def forward() -> Tensor:
            with self.tape.working(Matmul("attention", work(m), work(n), work(k), dtype, count)):
                return self.tape.new(total.symbols, total.n, dtype)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # bmm: self: grad.bmm(mat2.transpose(1, 2)), mat2: self.transpose(1, 2).bmm(grad), which is computed first
            to_a = to_b = None
            if needs[1]:
                with self.tape.working(Matmul("attention", work(k), work(n), work(m), dtype, count)):
                    to_b = self.new_gradient(shapes[1], dtype)
                to_b = self.tape.like(to_b) if scaled else to_b
            if needs[0]:
                with self.tape.working(Matmul("attention", work(m), work(k), work(n), dtype, count)):
                    to_a = self.new_gradient(shapes[0], dtype)
                to_a = self.tape.like(to_a) if scaled else to_a
            return to_a, to_b

        saved = (*((a.tensor,) if needs[1] else ()), *((b.tensor,) if needs[0] else ()))
        return Value(
            self.tape.record("batched_matmul", (a.tensor, b.tensor), backward, saved, forward),
            shape,
            self.contiguous(shape),
        )

    def _torch_einsum(self, equation: str, *operands: Any) -> Value:
        """Return the sum of products of two tensors as one batched matmul (`sumproduct_pair`)."""
        pair = operands[0] if len(operands) == 1 else operands
        inputs, output = equation.replace(" ", "").split("->")
        of_a, of_b = inputs.split(",")
        a, b = map(self._autocast, pair)
        both = [letter for letter in output if letter in of_a and letter in of_b]
        only_a = [letter for letter in output if letter not in of_b]
        only_b = [letter for letter in output if letter not in of_a]
        summed = sorted({*of_a, *of_b} - {*output})
        if not summed or any(letter not in of_a or letter not in of_b for letter in summed):
            raise Unsupported(f"einsum {equation}")
        size = dict(zip((*of_a, *of_b), (*a.shape, *b.shape), strict=True))

        def folded(x: Value, letters: str, *groups: list[str]) -> Value:
            order = [letters.index(letter) for group in groups for letter in group]
            shape = tuple(elements([size[letter] for letter in group]) for group in groups)
            return self.reshaped(self.permuted(x, order), shape, copies=True)

        left, right = folded(a, of_a, both, only_a, summed), folded(b, of_b, both, summed, only_b)
        del a, b, pair, operands
        product = self._bmm(left, right)
        del left, right
        letters = [*both, *only_a, *only_b]
        result = self.reshaped(product, tuple(size[letter] for letter in letters), copies=False)
        return self.permuted(result, [letters.index(letter) for letter in output])

    def _torch_linalg_solve_triangular(
        self, a: Value, b: Value, upper: bool = True, left: bool = True, unitriangular: bool = False
    ) -> Value:
        """Return the solution X of a X = b, for triangular matrices a. Its matrices are stored by columns."""
        shape, dtype = b.shape, b.tensor.dtype
        n, symbols = elements(shape)
        shapes, needs = (a.shape, b.shape), (a.tensor.requires_grad, b.tensor.requires_grad)
        by_columns = self.sizes.numbers((*shape[:-2], shape[-1], shape[-2]))
        *outer, across, along = contiguous(by_columns)
        strides = (*outer, along, across)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # linalg_solve_triangular_backward: B: A^H \ grad; A: the triangle of -grad_B X^H
            to_b = self.new_gradient(shapes[1], dtype)
            to_a = None
            if needs[0]:
                product = self.new_gradient(shapes[0], dtype)
                negative = self.tape.like(product)
                del product
                to_a = self.tape.like(negative)
                del negative
            return to_a, to_b if needs[1] else None

        saved = (a.tensor,)
        tensors = a.tensor, b.tensor
        del a, b
        return Value(
            self.tape.record(
                "solve", tensors, backward, saved, lambda: self.tape.new(symbols, n, dtype), saved_output=True
            ),
            shape,
            strides,
        )

    @staticmethod
    def _extent(dim: Dim) -> Extent:
        return dim.n, dim.symbols

    def _torch__grouped_mm(self, x: Value, weight: Value, offs: Any = None, **options: Any) -> Value:
        """Return one matmul for each expert of its rows of x (rows, in) with weight (experts, in, out): (rows, out).

        The work assumes that the router spreads tokens evenly over the experts.
        """
        rows, features = x.shape
        experts, _, out = weight.shape
        shape = (rows, out)
        n, symbols = elements(shape)
        dtype = weight.tensor.dtype
        x_needs, weight_needs = x.tensor.requires_grad, weight.tensor.requires_grad
        shapes = x.shape, weight.shape
        tokens, k, width, batch = (rows.n / experts.n, rows.symbols), (features.n, ONE), (out.n, ONE), (experts.n, ONE)

        def forward() -> Tensor:
            with self.tape.working(Matmul("linear layers", tokens, width, k, dtype, batch)):
                return self.tape.new(symbols, n, dtype)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # _grouped_mm: mat2: self.transpose(-2, -1) @ grad; self: grad @ mat2.transpose(-2, -1), for each group.
            to_x = to_weight = None
            if weight_needs:
                with self.tape.working(Matmul("linear layers", width, k, tokens, dtype, batch)):
                    to_weight = self.new_gradient(shapes[1], dtype)
            if x_needs:
                with self.tape.working(Matmul("linear layers", tokens, k, width, dtype, batch)):
                    to_x = self.new_gradient(shapes[0], dtype)
            return to_x, to_weight

        saved = (*((x.tensor,) if weight_needs else ()), *((weight.tensor,) if x_needs else ()))
        tensors = x.tensor, weight.tensor
        del x, weight
        return Value(
            self.tape.record("grouped_matmul", tensors, backward, saved, forward), shape, self.contiguous(shape)
        )
