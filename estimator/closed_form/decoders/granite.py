"""IBM Granite 3, dense: Llama's modules, but embeddings, outputs of sublayers and logits are scaled by constants."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.modules import Modules, Rotary


class Granite(Decoder):
    """transformers' GraniteModel."""

    def embed(self, m: Modules) -> Tensor:
        """Return the tokens' embeddings times ``embedding_multiplier``, (B·S, h)."""
        embedded = m.embedding()
        with m.op.tape.scope("embedding"):
            return m.op.scale(embedded)

    def layer(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the output of one layer."""
        residual = hidden
        hidden = self.norm(m, "input_layernorm", hidden)
        hidden, _ = self.attention(m, hidden, rotary)
        hidden = m.op.add(residual, m.op.scale(hidden))
        residual = hidden
        hidden = self.norm(m, "post_attention_layernorm", hidden)
        hidden = m.gated_mlp(hidden)
        return m.op.add(residual, m.op.scale(hidden))

    def scale_logits(self, m: Modules, logits: Tensor) -> Tensor:
        """Return logits divided by ``logits_scaling``."""
        return m.op.scale(logits)


DECODER = Granite()
