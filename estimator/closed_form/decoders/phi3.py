"""Phi-3 and Phi-4: fused projections, partial rotary positions, and dropout on the outputs of sublayers."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.modules import Modules, Rotary


class Phi3(Decoder):
    """transformers' Phi3Model."""

    def layer(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the output of one layer."""
        dropout = m.spec.config["resid_pdrop"]
        residual = hidden
        hidden = self.norm(m, "input_layernorm", hidden)
        hidden, _ = self.attention(m, hidden, rotary)
        hidden = m.op.add(residual, m.op.dropout(hidden, dropout))
        residual = hidden
        hidden = self.norm(m, "post_attention_layernorm", hidden)
        hidden = self.feed_forward(m, hidden)
        return m.op.add(residual, m.op.dropout(hidden, dropout))

    def attention(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor | None]:
        """Return the attention module's output. Queries, keys and values are slices of one projection."""
        assert rotary is not None
        q_width, kv_width = m.query_width, m.key_width
        qkv = m.linear("self_attn.qkv_proj", hidden)
        with m.op.tape.scope("attention"):
            q, k, v = m.op.part(qkv, q_width), m.op.part(qkv, kv_width), m.op.part(qkv, kv_width)
        heads, kv_heads = m.spec.num_attention_heads, m.spec.num_key_value_heads
        q, k = m.by_heads(q, heads, rotated=True), m.by_heads(k, kv_heads, rotated=True)
        v = m.by_heads(v, kv_heads, repeated=True)
        (q, q_others), (k, k_others) = m.rotary_parts(q), m.rotary_parts(k)
        q, k = m.join(m.rotate(q, rotary), q_others), m.join(m.rotate(k, rotary), k_others)
        output, probabilities = m.attention(q, k, v, dropout=m.spec.config.get("attention_dropout") or 0.0, joined=True)
        return m.linear("self_attn.o_proj", output), probabilities

    def feed_forward(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the output of a gated feed-forward, (B·S, h). Gate and up are halves of one projection."""
        width = m.spec.intermediate_size
        up_states = m.linear("mlp.gate_up_proj", hidden)
        with m.op.tape.scope("feed-forward"):
            gate, up_states = m.op.split(up_states, width, width)
            up_states = m.op.multiply(up_states, m.op.activation(gate))
        return m.linear("mlp.down_proj", up_states)


DECODER = Phi3()
