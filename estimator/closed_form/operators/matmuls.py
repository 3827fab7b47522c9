"""Matmuls: linear layers, with 4-bit weights too, and the batched matmuls of eager attention."""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.closed_form.autograd import Gradients, Tape, Tensor
from lorabench.estimator.closed_form.operators.indexing import Indexing
from lorabench.estimator.closed_form.sizes import ONE, PAIRS, TOKENS, B, Monomial, S
from lorabench.estimator.closed_form.work import Dequantisation, Matmul, MatmulGroup

DEQUANTISED_AGAIN = "dequantised again for backward"


class Matmuls(Indexing):
    """Operators that run a matmul."""

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        features: int,
        *,
        bias: Tensor | None = None,
        times: Monomial = ONE,
        component: str = "temporaries",
    ) -> Tensor:
        """Return x · weightᵀ (+ bias) for x (tokens, in_features): (tokens, ``features`` · ``times``)."""
        given = x  # the caller's tensor lives on beside its cast
        x = self.to_autocast(given)
        weight = self.to_autocast(weight)
        tape, tokens = self.tape, x.tokens
        x_needs, weight_needs = x.requires_grad, weight.requires_grad
        x_shape, x_times = (x.features, x.dtype), x.times
        weight_shape, weight_times = (weight.features, weight.dtype), weight.times
        group: MatmulGroup = "linear layers" if weight_times is ONE else "adapters"
        if component == "logits":
            group = "logits and loss"
        m, k, n = (1, tokens), (x_shape[0], x_times), (features, times)
        if tokens is ONE:  # B·A, the product of an adapter's two factors
            m, k, n = (x_shape[0], ONE), (1, x_times), (weight_shape[0], ONE)
        dtype = x.dtype

        def forward() -> Tensor:
            with tape.working(Matmul(group, m, n, k, dtype)):
                return tape.new(tokens, features, dtype, component, times=times)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # mm: self: grad.mm(mat2.t()), mat2: self.t().mm(grad); addmm: bias: grad, summed over the tokens.
            to_x = to_weight = None
            if x_needs:
                with tape.working(Matmul(group, m, k, n, dtype)):
                    to_x = tape.new(tokens, *x_shape, times=x_times)
            if weight_needs:
                with tape.working(Matmul(group, n, k, m, dtype)):
                    to_weight = tape.new(ONE, *weight_shape, times=weight_times)
                to_weight.is_view = True  # of the result, which is its transpose
            return to_x, to_weight, *to_bias(g)

        inputs: tuple[Tensor, ...] = (x, weight)
        to_bias: Callable[[Tensor], Gradients] = _no_bias
        if bias is not None:
            bias = self.to_autocast(bias)
            inputs = (x, weight, bias)
            to_bias = _bias_gradient(tape, bias)
            del bias
        saved = (*((x,) if weight_needs else ()), *((weight,) if x_needs else ()))
        return tape.record("linear", inputs, backward, saved, forward)

    def linear_4bit(self, x: Tensor, elements: int, features: int, compute_dtype: str, stored_dtype: str) -> Tensor:
        """Return bitsandbytes' matmul of x with a 4-bit weight of ``elements`` elements, (B·S, ``features``).

        The weight is dequantised into a copy for the matmul, and nothing is saved. Forward dequantises to the dtype of
        the matmul. Backward dequantises to ``stored_dtype``, the weight's dtype before quantisation, and casts. (Below
        about 1536 tokens, depending on the GPU, a fused kernel needs no copy in forward.)
        """
        given, was = x, x.dtype
        x = self.cast(given, compute_dtype)
        tape, in_features = self.tape, x.features
        m, k, n = (1, TOKENS), (in_features, ONE), (features, ONE)

        def dequantised(dtype: str) -> Tensor:
            again = DEQUANTISED_AGAIN if tape.in_backward else ""
            with tape.working(Dequantisation(elements, dtype)):
                absmax = tape.new(ONE, -(-elements // 64), "float32", name=again or "absmax, dequantised")
                weight = tape.new(ONE, elements, dtype, name=again or "dequantised weight")
            del absmax
            return weight

        def forward() -> Tensor:
            weight = dequantised(compute_dtype)
            with tape.working(Matmul("linear layers", m, n, k, compute_dtype)):
                output = tape.new(TOKENS, features, compute_dtype)
            del weight
            return output

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # MatMul4Bit.backward: torch.matmul(grad, dequantize_4bit(B, state).to(grad.dtype))
            weight = dequantised(stored_dtype)
            if g.dtype != stored_dtype:
                weight = tape.like(weight, g.dtype, name=DEQUANTISED_AGAIN)
            with tape.working(Matmul("linear layers", m, k, n, g.dtype)):
                to_x = tape.new(TOKENS, in_features, g.dtype)
            del weight
            return (to_x,)

        return self.cast(tape.record("linear_4bit", (x,), backward, (), forward), was)

    def matmul(
        self, a: Tensor, b: Tensor, tokens: Monomial, features: int, *, copied: tuple[bool, bool] = (False, False)
    ) -> Tensor:
        """Return torch.matmul of two operands of attention, in autocast's dtype; shapes as in `batched_matmul`.

        ``copied``: operands with memory layout (B, S, H, d), which matmul copies to merge sequences and heads.
        """
        first, second = self.to_autocast(a), self.to_autocast(b)
        if copied[0]:
            first = self.copy(first)
        if copied[1]:
            second = self.copy(second)
        return self.batched_matmul(first, second, tokens, features)

    def batched_matmul(self, a: Tensor, b: Tensor, tokens: Monomial, features: int) -> Tensor:
        """Return one matmul for each sequence and head. It saves each operand for the other's gradient.

        Either queries (B·S, H·d) times keys (B·S, H·d), which gives scores (B·S·S, H); or scores (B·S·S, H) times
        values (B·S, H·d), which gives outputs (B·S, H·d).
        """
        tape, dtype = self.tape, a.dtype
        heads, width = (features, a.features) if tokens is PAIRS else (a.features, features)
        seq, each = (1, S), (width / heads, ONE)
        m, n, k = (seq, seq, each) if tokens is PAIRS else (seq, each, seq)
        batch = (heads, B)
        to_operands = (
            (Matmul("attention", m, k, n, dtype, batch), (a.tokens, a.features, a.dtype) if a.requires_grad else None),
            (Matmul("attention", k, n, m, dtype, batch), (b.tokens, b.features, b.dtype) if b.requires_grad else None),
        )

        def forward() -> Tensor:
            with tape.working(Matmul("attention", m, n, k, dtype, batch)):
                return tape.new(tokens, features, dtype)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # bmm: self: grad.bmm(mat2.transpose(1, 2)), mat2: self.transpose(1, 2).bmm(grad)
            gradients: list[Tensor | None] = []
            for matmul, shape in to_operands:
                with tape.working(matmul):
                    gradients.append(tape.new(*shape) if shape else None)
            return tuple(gradients)

        saved = (*((a,) if b.requires_grad else ()), *((b,) if a.requires_grad else ()))
        return tape.record("batched_matmul", (a, b), backward, saved, forward)


def _no_bias(g: Tensor) -> Gradients:
    return ()


def _bias_gradient(tape: Tape, bias: Tensor) -> Callable[[Tensor], Gradients]:
    features, needs = bias.features, bias.requires_grad
    return lambda g: (tape.new(ONE, features, g.dtype) if needs else None,)
