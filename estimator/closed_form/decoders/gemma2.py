"""Gemma 2: norms before and after each sublayer, and soft-capped logits. Eager attention soft-caps its scores too."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.gemma import Gemma
from lorabench.estimator.closed_form.modules import Modules, Rotary


class Gemma2(Gemma):
    """transformers' Gemma2Model."""

    def layer(self, m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the output of one layer."""
        residual = hidden
        hidden = self.norm(m, "input_layernorm", hidden)
        hidden, _ = self.attention(m, hidden, rotary)
        hidden = self.norm(m, "post_attention_layernorm", hidden)
        hidden = m.op.add(residual, hidden)
        residual = hidden
        hidden = self.norm(m, "pre_feedforward_layernorm", hidden)
        hidden = m.gated_mlp(hidden)
        hidden = self.norm(m, "post_feedforward_layernorm", hidden)
        return m.op.add(residual, hidden)

    def scale_logits(self, m: Modules, logits: Tensor) -> Tensor:
        """Return cap · tanh(logits / cap), (B·S, V), or the logits if the config has no cap."""
        op = m.op
        if m.spec.config["final_logit_softcapping"] is None:
            return logits
        logits = op.scale(logits)
        logits = op.tanh(logits)
        return op.scale(logits)


DECODER = Gemma2()
