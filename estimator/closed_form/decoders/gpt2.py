"""GPT-2: learned positions, layer norms, one projection for queries, keys and values, dropout after each sublayer."""

from __future__ import annotations

from lorabench.estimator.closed_form.activations import activate
from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.modules import Modules, Rotary
from lorabench.estimator.closed_form.sizes import POSITION_INDICES, POSITION_PARTS, TOKENS, S


class Gpt2(Decoder):
    """transformers' GPT2Model."""

    def inputs(self, m: Modules) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the first layer's input: embeddings plus learned positions."""
        spec, op = m.spec, m.op
        embedded = m.embedding()
        with op.tape.scope("embedding"):
            # A single sequence broadcasts nothing: the positions' gradient is the gradient of the sum.
            tokens = S if m.recipe.batch_size > 1 else TOKENS
            table = m.weights[spec.embeddings[1].name]
            positions = op.embedding(table, spec.hidden_size, tokens, (POSITION_INDICES, POSITION_PARTS))
            hidden = op.add(embedded, positions)
        return hidden, (embedded, positions)

    def drop_inputs(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the sum of embeddings and positions with dropout."""
        with m.op.tape.scope("embedding"):
            return m.op.dropout(hidden, m.spec.config["embd_pdrop"])

    def rotary(self, m: Modules, hidden: Tensor) -> Rotary | None:
        """Return None: positions are learned."""
        return None

    def norm(self, m: Modules, name: str, hidden: Tensor) -> Tensor:
        """Return torch's layer norm."""
        return m.layer_norm(name, hidden)

    def layer(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the output of one layer."""
        config = m.spec.config
        residual = hidden
        hidden = m.layer_norm("ln_1", hidden)
        width = m.spec.hidden_size
        q, k, v = m.op.split(m.linear("attn.c_attn", hidden), width, width, width)
        q, v = (m.by_heads(x, m.spec.num_attention_heads) for x in (q, v))
        # GPT-2 requests no dtype for its softmax; other families request float32.
        output, _ = m.attention(q, k, v, dropout=config["attn_pdrop"], float32_softmax=False)
        output = m.linear("attn.c_proj", output)
        output = m.op.dropout(output, config["resid_pdrop"])
        del q, k, v
        hidden = m.op.add(output, residual)
        residual = hidden
        hidden = m.layer_norm("ln_2", hidden)
        feed_forward = m.linear("mlp.c_fc", hidden)
        feed_forward = activate(m.op, config["activation_function"], feed_forward)
        feed_forward = m.linear("mlp.c_proj", feed_forward)
        feed_forward = m.op.dropout(feed_forward, config["resid_pdrop"])
        return m.op.add(residual, feed_forward)


DECODER = Gpt2()
