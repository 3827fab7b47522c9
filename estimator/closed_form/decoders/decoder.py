"""Llama's forward pass, from token ids to hidden states, which most families share. It follows transformers 5.23.

A family with a different forward pass has a file here with a subclass of `Decoder`. Local variables have the names and
lifetimes that they have in transformers: a tensor that a caller still references is a tensor in memory.
"""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.masks import Masks
from lorabench.estimator.closed_form.modules import Modules, Rotary


class Decoder:
    """Llama, Mistral, Qwen2, Qwen3: RMS norms, rotary attention with grouped heads, a gated feed-forward."""

    def begin(
        self, m: Modules, make_masks: Callable[..., Masks]
    ) -> tuple[Tensor, Masks, Rotary | None, tuple[Tensor, ...]]:
        """Return the first layer's input, (B·S, h), the masks, the rotary tables, and the other tensors that live until
        forward ends.

        ``m``: the modules outside the layers. ``make_masks`` makes masks in a dtype.
        """
        hidden, others = self.inputs(m)
        masks = make_masks(hidden.dtype)
        hidden = self.drop_inputs(m, hidden)
        return hidden, masks, self.rotary(m, hidden), others

    def inputs(self, m: Modules) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the first layer's input, (B·S, h), and the other tensors that live until forward ends.

        ``m``: the modules outside the layers.
        """
        embedded = self.embed(m)
        return embedded, (embedded,)

    def drop_inputs(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the first layer's input after the model's dropout on it, which follows the masks; here without any."""
        return hidden

    def rotary(self, m: Modules, hidden: Tensor) -> Rotary | None:
        """Return the tables of rotary positions. They are made after the masks. ``hidden``: the first layer's input."""
        return m.rotary_tables(hidden.dtype)

    def embed(self, m: Modules) -> Tensor:
        """Return the tokens' embeddings, (B·S, h)."""
        return m.embedding()

    def layer(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the output of one layer for ``hidden``, both (B·S, h). ``m``: the layer's modules."""
        residual = hidden
        hidden = self.norm(m, "input_layernorm", hidden)
        hidden, _ = self.attention(m, hidden, rotary)
        hidden = m.op.add(residual, hidden)
        residual = hidden
        hidden = self.norm(m, "post_attention_layernorm", hidden)
        hidden = self.feed_forward(m, hidden)
        return m.op.add(residual, hidden)

    def norm(self, m: Modules, name: str, hidden: Tensor) -> Tensor:
        """Return the norm ``name`` of ``hidden``, in its shape."""
        return m.rms_norm(name, hidden)

    def final_norm(self, m: Modules, hidden: Tensor, rotary: Rotary | None = None) -> Tensor:
        """Return the model's final norm of the last layer's output, (B·S, h)."""
        return self.norm(m, m.spec.final_norm[0].name.removesuffix(".weight"), hidden)

    def attention(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor | None]:
        """Return the attention module's output, (B·S, h), and the probabilities, (B·S·S, H), if attention is eager.

        Queries, keys and values have a projection each. If the layer has norms for queries and keys (Qwen 3), they
        norm each head separately.
        """
        assert rotary is not None
        heads, kv_heads = m.spec.num_attention_heads, m.spec.num_key_value_heads
        q = m.by_heads(m.linear("self_attn.q_proj", hidden), heads, rotated=True)
        if "self_attn.q_norm.weight" in m.weights:
            q = m.rms_norm("self_attn.q_norm", q, heads)
        k = m.by_heads(m.linear("self_attn.k_proj", hidden), kv_heads, rotated=True)
        if "self_attn.k_norm.weight" in m.weights:
            k = m.rms_norm("self_attn.k_norm", k, kv_heads)
        v = m.by_heads(m.linear("self_attn.v_proj", hidden), kv_heads, repeated=True)
        q, k = m.rotate(q, rotary), m.rotate(k, rotary)
        output, probabilities = m.attention(q, k, v, dropout=m.spec.config.get("attention_dropout") or 0.0)
        return m.linear("self_attn.o_proj", output), probabilities

    def feed_forward(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the feed-forward module's output, (B·S, h)."""
        return m.gated_mlp(hidden)

    def scale_logits(self, m: Modules, logits: Tensor) -> Tensor:
        """Return the head's logits, (B·S, V), scaled or capped if the family does so."""
        return logits
