"""Gemma 1: Llama with scaled embeddings and another RMS norm."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.modules import Modules


class Gemma(Decoder):
    """transformers' GemmaModel."""

    def embed(self, m: Modules) -> Tensor:
        """Return the tokens' embeddings, (B·S, h). The embedding module multiplies them by √h."""
        return m.embedding(scaled=True)

    def norm(self, m: Modules, name: str, hidden: Tensor) -> Tensor:
        """Return Gemma's RMS norm, in the shape of ``hidden``: it multiplies by 1 + weight, in float32."""
        op, dtype = m.op, hidden.dtype
        with op.tape.scope("norm", name):
            x32 = op.cast(hidden, "float32")
            output = op.multiply(x32, op.rsqrt(op.shift(op.mean(op.power(x32)))))
            del x32
            weight = op.shift(op.cast(m.weights[f"{name}.weight"], "float32"))
            output = op.multiply(output, weight)
            return op.cast(output, dtype)


DECODER = Gemma()
