"""OLMo 2: norms follow each sublayer; queries and keys have one norm over all their heads."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.modules import Modules, Rotary


class Olmo2(Decoder):
    """transformers' Olmo2Model."""

    def rotary(self, m: Modules, hidden: Tensor) -> Rotary | None:
        """Return rotary tables that stay in float32."""
        return m.rotary_tables("float32")

    def layer(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the output of one layer."""
        residual = hidden
        hidden, _ = self.attention(m, hidden, rotary)
        hidden = self.norm(m, "post_attention_layernorm", hidden)
        hidden = m.op.add(residual, hidden)
        residual = hidden
        hidden = self.feed_forward(m, hidden)
        hidden = self.norm(m, "post_feedforward_layernorm", hidden)
        return m.op.add(residual, hidden)

    def norm(self, m: Modules, name: str, hidden: Tensor) -> Tensor:
        """Return OLMo 2's RMS norm: it multiplies by the weight in float32, and casts the product back."""
        op, dtype = m.op, hidden.dtype
        with op.tape.scope("norm", name):
            x32 = op.cast(hidden, "float32")
            variance = op.mean(op.power(x32))
            x32 = op.multiply(x32, op.rsqrt(op.shift(variance)))
            return op.cast(op.multiply(m.weights[f"{name}.weight"], x32), dtype)

    def attention(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor | None]:
        """Return the attention module's output. Queries and keys are normed before they are split into heads."""
        assert rotary is not None
        heads, kv_heads = m.spec.num_attention_heads, m.spec.num_key_value_heads
        q = self.norm(m, "self_attn.q_norm", m.linear("self_attn.q_proj", hidden))
        k = self.norm(m, "self_attn.k_norm", m.linear("self_attn.k_proj", hidden))
        v = m.linear("self_attn.v_proj", hidden)
        q, k = m.by_heads(q, heads, rotated=True), m.by_heads(k, kv_heads, rotated=True)
        v = m.by_heads(v, kv_heads, repeated=True)
        # The float32 tables promote queries and keys to float32; both are cast back once both are rotated.
        rotated_q, rotated_k = m.rotate(q, rotary), m.rotate(k, rotary)
        q, k = m.op.cast(rotated_q, q.dtype), m.op.cast(rotated_k, k.dtype)
        del rotated_q, rotated_k
        output, probabilities = m.attention(q, k, v, dropout=m.spec.config["attention_dropout"])
        return m.linear("self_attn.o_proj", output), probabilities


DECODER = Olmo2()
