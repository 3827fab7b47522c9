"""The forward pass that most families share, Llama's, as transformers 5.23 writes it: from token ids to hidden states.

A family that does something otherwise has a file here with a subclass of `Decoder`. Local variables are named and held
as in transformers: a tensor that a caller still holds is a tensor in memory.
"""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.modules import Modules, Rotary


class Decoder:
    """Llama, Mistral, Qwen2, Qwen3: RMS norms, rotary attention with grouped heads, a gated feed-forward."""

    def inputs(self, m: Modules) -> tuple[Tensor, Rotary | None, tuple[Tensor, ...]]:
        """Return the first layer's input, (B·S, h), the rotary tables, and what else the forward pass holds to its end.

        ``m`` are the modules around the layers.
        """
        embedded = self.embed(m)
        return embedded, m.rotary_tables(embedded.dtype), (embedded,)

    def embed(self, m: Modules) -> Tensor:
        """Return the tokens' embeddings, (B·S, h)."""
        return m.embedding()

    def layer(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the output of one layer, whose modules are ``m``, for ``hidden``, both (B·S, h)."""
        residual = hidden
        hidden = self.norm(m, "input_layernorm", hidden)
        hidden, _ = self.attention(m, hidden, rotary)
        hidden = m.op.add(residual, hidden)
        residual = hidden
        hidden = self.norm(m, "post_attention_layernorm", hidden)
        hidden = self.feed_forward(m, hidden)
        return m.op.add(residual, hidden)

    def norm(self, m: Modules, name: str, hidden: Tensor) -> Tensor:
        """Return ``hidden`` normed by module ``name``."""
        return m.rms_norm(name, hidden)

    def final_norm(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the last layer's output, normed."""
        return self.norm(m, m.spec.final_norm[0].name.removesuffix(".weight"), hidden)

    def attention(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor | None]:
        """Return the attention module's output, and the probabilities where attention is eager.

        Projections are separate; queries and keys are normed head by head where the layer has norms for them (Qwen 3).
        """
        assert rotary is not None
        q = m.linear("self_attn.q_proj", hidden)
        if "self_attn.q_norm.weight" in m.weights:
            q = m.rms_norm("self_attn.q_norm", q, m.spec.num_attention_heads)
        k = m.linear("self_attn.k_proj", hidden)
        if "self_attn.k_norm.weight" in m.weights:
            k = m.rms_norm("self_attn.k_norm", k, m.spec.num_key_value_heads)
        v = m.linear("self_attn.v_proj", hidden)
        q, k = m.rotate(q, rotary), m.rotate(k, rotary)
        output, probabilities = m.attention(q, k, v, dropout=m.spec.config.get("attention_dropout") or 0.0)
        return m.linear("self_attn.o_proj", output), probabilities

    def feed_forward(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the feed-forward module's output."""
        return m.gated_mlp(hidden)

    def scale_logits(self, m: Modules, logits: Tensor) -> Tensor:
        """Return the head's output, (B·S, V), as the family scales or caps it."""
        return logits
