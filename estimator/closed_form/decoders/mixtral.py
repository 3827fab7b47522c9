"""Mixtral: Llama with a mixture of experts in every layer."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.experts import sparse_mlp
from lorabench.estimator.closed_form.linear_experts import looped_mlp
from lorabench.estimator.closed_form.modules import Modules


class Mixtral(Decoder):
    """transformers' MixtralModel."""

    def feed_forward(self, m: Modules, hidden: Tensor) -> Tensor:
        """Return the experts' output, (B·S, h). Each token's routing weights sum to one, and stay in float32.

        Before transformers 5, experts are linear layers.
        """
        if m.recipe.transformers is not None:
            return looped_mlp(m, hidden)
        return sparse_mlp(m, hidden, normed=True, float32_weights=True)


DECODER = Mixtral()
