"""The forward pass of each family. What a family does as Llama does is in `decoder`; the rest is in its own file.

To add a family: its shapes in `models/families`, its forward pass here, and its name in `MODEL_TYPES` and `DECODERS`.
OLMo 2, for one, norms the output of each sublayer instead of its input, and queries and keys over all heads at once: it
would be a subclass of `Decoder` with a `layer` and an `attention` of its own.
"""

from __future__ import annotations

from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.decoders.gemma import Gemma
from lorabench.estimator.closed_form.decoders.gemma2 import Gemma2
from lorabench.estimator.closed_form.decoders.gpt2 import Gpt2
from lorabench.estimator.closed_form.decoders.gpt_neox import GptNeoX
from lorabench.estimator.closed_form.decoders.granite import Granite
from lorabench.estimator.closed_form.decoders.mixtral import Mixtral
from lorabench.estimator.closed_form.decoders.phi3 import Phi3
from lorabench.estimator.closed_form.decoders.qwen3_moe import Qwen3Moe

DECODERS: dict[str, Decoder] = {
    "gemma": Gemma(),
    "gemma2": Gemma2(),
    "gpt2": Gpt2(),
    "gpt_neox": GptNeoX(),
    "granite": Granite(),
    "llama": Decoder(),
    "mistral": Decoder(),
    "mixtral": Mixtral(),
    "phi3": Phi3(),
    "qwen2": Decoder(),
    "qwen3": Decoder(),
    "qwen3_moe": Qwen3Moe(),
}
"""model_type → its forward pass."""
