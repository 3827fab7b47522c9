"""Attention by a fused kernel, as the recipe selects it."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.closed_form.autograd import Gradients, Node, Tensor
from lorabench.estimator.closed_form.layout import (
    Layout,
    Unsupported,
    elements,
    is_contiguous,
)
from lorabench.estimator.closed_form.programs.elementwise import Elementwise
from lorabench.estimator.closed_form.programs.values import Value


class Attention(Elementwise):
    """Fused attention."""

    def _torch_attention(self, q: Value, k: Value, v: Value, mask: Any, dropout: Any = 0.0, **named: Any) -> Value:
        """Return transformers' sdpa or flash attention of q, k and v (B, H, S, d), as (B, S, H, d)."""
        if any(value is not None for value in named.values()):
            raise Unsupported(f"attention with {', '.join(named)}")
        batch, heads, length, _ = q.shape
        m = self.m
        shape = (batch, length, heads, v.shape[-1])
        joined = self._by_heads(q, k, v)
        output, _ = m.attention(
            self._by_position(q),
            self._by_position(k),
            self._by_position(v),
            dropout=self._probability(dropout),
            joined=joined,
        )
        return Value(output, shape, self.contiguous(shape))

    def _by_heads(self, q: Value, k: Value, v: Value) -> bool:
        """Tell the modules the heads of q, k and v, and return whether the memory layout of q is (B, H, S, d)."""
        m = self.m
        m.heads, m.kv_heads, m.head_dim, m.value_dim = q.shape[1].n, k.shape[1].n, q.shape[3].n, v.shape[-1].n
        for each in (q, k, v):
            n, symbols = elements(each.shape)
            each.tensor.tokens, each.tensor.features = symbols, n
        return is_contiguous(self.sizes.numbers(q.shape), q.strides)

    def _probability(self, dropout: Any) -> float:
        """Return the probability of dropout in attention, which the config says."""
        return float(self.m.spec.config.get("attention_dropout") or 0.0) if dropout else 0.0

    def _torch_scaled_dot_product_attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        attn_mask: Any = None,
        dropout_p: Any = 0.0,
        is_causal: bool = False,
        scale: Any = None,
        enable_gqa: bool = False,
    ) -> Value:
        """Return torch's attention of q, k and v (B, H, S, d), in that shape."""
        if isinstance(attn_mask, Value):
            self.m.mask = attn_mask.tensor
        if enable_gqa or self.m.recipe.attn_implementation != "sdpa":
            return self.permuted(self._torch_attention(q, k, v, None, dropout=dropout_p), (0, 2, 1, 3))
        joined = self._by_heads(q, k, v)
        batch, heads, length, _ = q.shape
        queries, keys, values = map(self._by_position, (q, k, v))
        with self.tape.scope("attention"):
            output, by_token = self.m.sdpa(
                queries, keys, values, k.shape[1].n, self._probability(dropout_p), joined, gqa=False
            )
        if by_token:
            shape = (batch, length, heads, v.shape[-1])
            return self.permuted(Value(output, shape, self.contiguous(shape)), (0, 2, 1, 3))
        shape = (batch, heads, length, v.shape[-1])
        return Value(output, shape, self.contiguous(shape))

    def _by_position(self, x: Value) -> Tensor:
        """Return x (B, H, S, d) for a fused kernel, whose gradient has the memory layout (B, S, H, d)."""
        if not x.tensor.requires_grad or self.tape.unrecorded or self.m.single_operators(x.tensor.dtype):
            return x.tensor
        shape = self.sizes.numbers(x.shape)
        _, heads, length, width = shape
        layout = Layout(shape, (length * heads * width, width, heads * width, 1))

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            passed = g.passed_on()
            passed.layout = layout
            return (passed,)

        return x.tensor.view(node=Node(self.tape, "layout", backward, (x.tensor,), ()))
