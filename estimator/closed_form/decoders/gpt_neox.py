"""GPT-NeoX and Pythia: attention and feed-forward in parallel or in sequence, layer norms, dropout."""

from __future__ import annotations

from lorabench.estimator.closed_form.activations import activate
from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.modules import Modules, Rotary


class GptNeoX(Decoder):
    """transformers' GPTNeoXModel."""

    def drop_inputs(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the embeddings with dropout."""
        with m.op.tape.scope("embedding"):
            return m.op.dropout(hidden, m.spec.config["hidden_dropout"])

    def norm(self, m: Modules, name: str, hidden: Tensor) -> Tensor:
        """Return torch's layer norm."""
        return m.layer_norm(name, hidden)

    def layer(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the output of one layer."""
        config, op = m.spec.config, m.op
        dropout = config["hidden_dropout"]
        attention, _ = self.attention(m, self.norm(m, "input_layernorm", hidden), rotary)
        attention = op.dropout(attention, dropout)
        if config["use_parallel_residual"]:
            feed_forward = self.feed_forward(m, self.norm(m, "post_attention_layernorm", hidden))
            feed_forward = op.dropout(feed_forward, dropout)
            return op.add(op.add(feed_forward, attention), hidden)
        attention = op.add(attention, hidden)
        feed_forward = self.feed_forward(m, self.norm(m, "post_attention_layernorm", attention))
        feed_forward = op.dropout(feed_forward, dropout)
        return op.add(feed_forward, attention)

    def attention(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor | None]:
        """Return the attention module's output. One projection makes queries, keys and values.

        Rotary positions apply to the first features of each head.
        """
        assert rotary is not None
        width = m.spec.hidden_size
        qkv = m.by_heads(m.linear("attention.query_key_value", hidden), m.spec.num_attention_heads, rotated=True)
        with m.op.tape.scope("attention"):
            q, k, v = m.op.split(qkv, width, width, width)
        (q, q_others), (k, k_others) = m.rotary_parts(q), m.rotary_parts(k)
        q, k = m.rotate(q, rotary), m.rotate(k, rotary)
        q = m.join(q, q_others)
        k = m.join(k, k_others)
        output, probabilities = m.attention(q, k, v, dropout=m.spec.config["attention_dropout"], joined=True)
        return m.linear("attention.dense", output), probabilities

    def feed_forward(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the output of a feed-forward without a gate, (B·S, h)."""
        states = m.linear("mlp.dense_h_to_4h", hidden)
        states = activate(m.op, m.spec.config["hidden_act"], states)
        return m.linear("mlp.dense_4h_to_h", states)


DECODER = GptNeoX()
