"""The forward pass of each model family. `decoder` has Llama's; a family's own file overrides what differs.

A file has the name of its ``model_type`` and ends with ``DECODER``, an instance of its subclass of `Decoder`. A family
without a file runs Llama's forward pass.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from lorabench.estimator.closed_form.decoders.decoder import Decoder


@cache
def decoder_of(model_type: str) -> Decoder:
    """Return the decoder of family ``model_type``, one of `MODEL_TYPES`."""
    if not (Path(__file__).parent / f"{model_type}.py").exists():
        return Decoder()
    decoder: Decoder = importlib.import_module(f"{__name__}.{model_type}").DECODER
    return decoder
