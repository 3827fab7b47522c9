"""The forward pass of each family. What a family does as Llama does is in `decoder`; the rest is in its own file.

A file is named by its ``model_type`` and ends with ``DECODER``, an instance of its subclass of `Decoder`. A family
without a file here runs Llama's forward pass.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from lorabench.estimator.closed_form.decoders.decoder import Decoder


@cache
def decoder_of(model_type: str) -> Decoder:
    """Return the forward pass of a family, one of `MODEL_TYPES`."""
    if not (Path(__file__).parent / f"{model_type}.py").exists():
        return Decoder()
    decoder: Decoder = importlib.import_module(f"{__name__}.{model_type}").DECODER
    return decoder
