"""Qwen 3 with a mixture of experts in some layers, or in all."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.experts import sparse_mlp
from lorabench.estimator.closed_form.modules import Modules


class Qwen3Moe(Decoder):
    """transformers' Qwen3MoeModel."""

    def feed_forward(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the output of the experts, or of a dense layer's gated feed-forward, (B·S, h)."""
        if "mlp.gate.weight" not in m.weights:
            return m.gated_mlp(hidden)
        return sparse_mlp(m, hidden, normed=m.spec.config["norm_topk_prob"], float32_weights=False)


DECODER = Qwen3Moe()
