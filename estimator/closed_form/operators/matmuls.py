"""Matmuls: linear layers, with 4-bit weights too, and the batched matmuls of eager attention."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Broadcast, Gradients, Tensor
from lorabench.estimator.closed_form.operators.indexing import Indexing
from lorabench.estimator.closed_form.sizes import ONE, PAIRS, B, Monomial, S
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
        # Autocast casts a call's arguments from the last to the first.
        bias = None if bias is None else self.to_autocast(bias)
        weight = self.to_autocast(weight)
        x = self.to_autocast(given)
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
            # mm: self: grad.mm(mat2.t()), mat2: self.t().mm(grad); addmm: bias: grad, summed over the tokens. Gradients
            # are computed in the order of the arguments' names: addmm calls them mat1 and mat2, mm self and mat2.
            gradients: dict[str, Tensor] = {}
            for operand in ("x", "weight") if biased else ("weight", "x"):
                if operand == "x" and x_needs:
                    with tape.working(Matmul(group, m, k, n, dtype)):
                        gradients["x"] = tape.new(tokens, *x_shape, times=x_times)
                    # The matmul is of (B·S, in_features); its result is viewed as (B, S, in_features).
                    gradients["x"].is_view = tokens is not ONE
                if operand == "weight" and weight_needs:
                    with tape.working(Matmul(group, n, k, m, dtype)):
                        gradients["weight"] = tape.new(ONE, *weight_shape, times=weight_times)
                    gradients["weight"].is_view = True  # the transpose of the matmul's result
            to_bias = (Broadcast(g, ONE, features) if bias_needs else None,) if biased else ()
            return gradients.pop("x", None), gradients.pop("weight", None), *to_bias

        inputs = (x, weight) if bias is None else (x, weight, bias)
        biased, bias_needs = bias is not None, bias is not None and bias.requires_grad
        del bias
        saved = (*((x,) if weight_needs else ()), *((weight,) if x_needs else ()))
        return tape.record("linear", inputs, backward, saved, forward)

    def linear_4bit(
        self,
        x: Tensor,
        elements: int,
        features: int,
        compute_dtype: str,
        stored_dtype: str,
        *,
        double_quant: bool,
        keeps_input: bool = False,
    ) -> Tensor:
        """Return bitsandbytes' matmul of x with a 4-bit weight of ``elements`` elements, (tokens, ``features``).

        The weight is dequantised into a copy for the matmul, and nothing is saved. Forward dequantises to the dtype of
        the matmul. Backward dequantises to ``stored_dtype``, the weight's dtype before quantisation, and casts. With
        ``double_quant`` the constants are dequantised first; CUDA's forward keeps them until it returns, without and
        with their offset (`_dequant_linear_fallback`). (Below about 1536 tokens, depending on the GPU, a fused kernel
        needs no copy in forward.)

        ``keeps_input``: as before bitsandbytes 0.43.2, the context of `MatMul4Bit` refers to x in the matmul's dtype,
        if x requires a gradient. Forward then dequantises as backward does.
        """
        given, was = x, x.dtype
        x = self.cast(given, compute_dtype)
        tape, tokens, in_features = self.tape, x.tokens, x.features
        m, k, n = (1, tokens), (in_features, ONE), (features, ONE)
        without_offset = self.backend == "cuda" and double_quant and not keeps_input

        def dequantised(dtype: str) -> tuple[Tensor, list[Tensor]]:
            again = DEQUANTISED_AGAIN if tape.in_backward else ""
            copies = 0 if not double_quant else 2 if without_offset and not again else 1
            absmax = again or "absmax, dequantised"
            with tape.working(Dequantisation(elements, dtype)):
                absmaxes = [tape.new(ONE, -(-elements // 64), "float32", name=absmax) for _ in range(copies)]
                return tape.new(ONE, elements, dtype, name=again or "dequantised weight"), absmaxes

        def forward() -> Tensor:
            weight, absmaxes = dequantised(stored_dtype if keeps_input else compute_dtype)
            if not without_offset:
                absmaxes.clear()
            if weight.dtype != compute_dtype:
                weight = tape.like(weight, compute_dtype)
            with tape.working(Matmul("linear layers", m, n, k, compute_dtype)):
                output = tape.new(tokens, features, compute_dtype)
            del weight, absmaxes
            return output

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # MatMul4Bit.backward: torch.matmul(grad, dequantize_4bit(B, state).to(grad.dtype))
            weight = dequantised(stored_dtype)[0]
            if g.dtype != stored_dtype:
                weight = tape.like(weight, g.dtype, name=DEQUANTISED_AGAIN)
            with tape.working(Matmul("linear layers", m, k, n, g.dtype)):
                to_x = tape.new(tokens, in_features, g.dtype)
            del weight
            return (to_x,)

        output = tape.record("linear_4bit", (x,), backward, (), forward)
        if keeps_input and x.requires_grad:
            tape.hold(x)
        return self.cast(output, was)

    def matmul(
        self, a: Tensor, b: Tensor, tokens: Monomial, features: int, *, copied: tuple[bool, bool] = (False, False)
    ) -> Tensor:
        """Return torch.matmul of two operands of attention, in autocast's dtype; shapes as in `batched_matmul`.

        ``copied``: operands with memory layout (B, S, H, d), which matmul copies to merge sequences and heads.
        """
        second = self.to_autocast(b)  # autocast casts the last argument first
        first = self.to_autocast(a)
        # What is cast for the call lives as long as it.
        by_head = self.copy(first) if copied[0] else first, self.copy(second) if copied[1] else second
        return self.batched_matmul(*by_head, tokens, features)

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
            # bmm: self: grad.bmm(mat2.transpose(1, 2)), mat2: self.transpose(1, 2).bmm(grad), which is computed first
            gradients: list[Tensor | None] = []
            for matmul, shape in reversed(to_operands):
                with tape.working(matmul):
                    gradients.append(tape.new(*shape) if shape else None)
            return tuple(reversed(gradients))

        saved = (*((a,) if b.requires_grad else ()), *((b,) if a.requires_grad else ()))
        return tape.record("batched_matmul", (a, b), backward, saved, forward)
