"""Operators that move elements and compute nothing: slices, concatenation, copies, lookups."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Gradients, Node, Tensor
from lorabench.estimator.closed_form.operators.elementwise import Elementwise, component_of
from lorabench.estimator.closed_form.sizes import INDICES, ONE, PARTS, SHIFTED_TOKENS, TOKENS, Monomial


class Indexing(Elementwise):
    """Operators that move elements."""

    def part(self, x: Tensor, features: int) -> Tensor:
        """Return a slice of the features, (tokens, ``features``), a view."""
        tape, whole = self.tape, x.features
        if not x.requires_grad:
            return x.view(features)
        # slice: slice_backward: zeros of the whole shape, with grad written into the slice.
        node = Node(tape, "part", lambda g, _: (tape.new(g.tokens, whole, g.dtype),), (x,), ())
        return x.view(features, node)

    def all_but_last(self, x: Tensor) -> Tensor:
        """Return each sequence without its last token, (B·(S − 1), features), a view."""
        tape, features, component = self.tape, x.features, component_of(x)
        # slice: slice_backward, as in `part`.
        node = Node(tape, "all_but_last", lambda g, _: (tape.new(TOKENS, features, g.dtype, component),), (x,), ())
        rest = x.view(node=node)
        rest.tokens = SHIFTED_TOKENS
        return rest

    def split(self, x: Tensor, *features: int) -> list[Tensor]:
        """Return views of consecutive ``features``, each (tokens, features), as chunk and split do."""
        tape, whole = self.tape, x.features
        if not x.requires_grad:
            return [x.view(part) for part in features]

        def backward(gradients: list[Tensor], _: list[Tensor]) -> Gradients:
            # split: cat(grads)
            return (tape.new(gradients[0].tokens, whole, gradients[0].dtype),)

        node = Node(tape, "split", backward, (x,), (), outputs=len(features))
        parts = [x.view(part, node) for part in features]
        for number, part in enumerate(parts):
            part.output = number
        return parts

    def join(self, *parts: Tensor) -> Tensor:
        """Return the concatenation of the parts' features, (tokens, sum of their features)."""
        tape, features = self.tape, [part.features for part in parts]

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # cat: grad.narrow(dim, start, length) for each part: views.
            return tuple(g.view(width) for width in features)

        tokens, dtype = parts[0].tokens, parts[0].dtype
        return tape.record("join", parts, backward, (), lambda: tape.new(tokens, sum(features), dtype))

    def copy(self, x: Tensor, component: str = "temporaries") -> Tensor:
        """Return a copy of x, in its shape, as contiguous and clone do."""
        tape = self.tape
        # clone: grad
        return tape.record("copy", (x,), lambda g, _: (g.passed_on(),), (), lambda: tape.like(x, component=component))

    def gather(self, x: Tensor, tokens: Monomial, features: int, index: Tensor, indices: int) -> Tensor:
        """Return the rows of x that ``index`` selects, (``tokens``, ``features``). It saves the int64 index.

        There are ``indices`` indices a token. CUDA's backward sorts them to sum the gradients of repeated rows
        (`index_put_with_sort_kernel`). Its six int64 temporaries are the indices and their order: unsorted, sorted, and
        once more in the sort's own buffers.
        """
        tape, was, dtype, cuda = self.tape, (x.tokens, x.features), x.dtype, self.backend == "cuda"

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # index: index_backward(grad.new_zeros(sizes), indices, grad)
            added = tape.new(*was, g.dtype)
            scratch = [tape.new(tokens, indices, "int64") for _ in range(6)] if cuda else []
            del scratch
            return (added,)

        return tape.record("gather", (x,), backward, (index,), lambda: tape.new(tokens, features, dtype))

    def repeat_heads(self, x: Tensor, times: int, *, alone: bool = False) -> Tensor:
        """Return keys or values, (B·S, kv), repeated for each query head that shares them, (B·S, ``times`` · kv).

        ``alone``: x is a single head, which needs no copy: a view that strides over it by 0 bytes.
        """
        if times == 1:
            return x
        tape, features = self.tape, x.features

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # expand: sum_to(grad, self.sizes()); clone copies
            return (tape.new(TOKENS, features, g.dtype),)

        if alone:
            node = Node(tape, "repeat_heads", backward, (x,), ()) if x.requires_grad else None
            return x.view(features * times, node)
        return tape.record("repeat_heads", (x,), backward, (), lambda: tape.new(TOKENS, features * times, x.dtype))

    def embedding(
        self,
        weight: Tensor,
        features: int,
        tokens: Monomial = TOKENS,
        scratch: tuple[Monomial, Monomial] = (INDICES, PARTS),
    ) -> Tensor:
        """Return ``tokens`` rows of the table ``weight``, (tokens, ``features``).

        ``scratch``: numbers of indices and of partial sums that CUDA's backward allocates (`embedding_backward`).
        """
        tape, elements, dtype = self.tape, weight.features, weight.dtype

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # embedding: embedding_dense_backward(grad, indices, …), as large as the table.
            to_weight = tape.new(ONE, elements, dtype)
            temporaries = []
            if self.backend == "cuda":
                temporaries = [tape.new(scratch[0], 1, "int64"), tape.new(scratch[1], features, "float32")]
            del temporaries
            return (to_weight,)

        return tape.record("embedding", (weight,), backward, (), lambda: tape.new(tokens, features, dtype))
