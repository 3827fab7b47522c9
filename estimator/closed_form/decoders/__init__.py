"""The forward pass of each model family. `decoder` has Llama's; a family's own file overrides what differs.

A file has the name of its ``model_type`` and ends with ``DECODER``, an instance of its subclass of `Decoder`. A family
without a file runs Llama's forward pass.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.programs.decoder import Recorded
from lorabench.estimator.models.read_config import MODEL_TYPES
from lorabench.estimator.models.recordings import find_recording
from lorabench.estimator.models.spec import ModelSpec


def decoder_of(spec: ModelSpec) -> Decoder:
    """Return the decoder of the model, which has a closed form."""
    recording = None if spec.model_type in MODEL_TYPES else find_recording(spec.config)
    return _by_hand(spec.model_type) if recording is None else Recorded(recording)


@cache
def _by_hand(model_type: str) -> Decoder:
    if not (Path(__file__).parent / f"{model_type}.py").exists():
        return Decoder()
    decoder: Decoder = importlib.import_module(f"{__name__}.{model_type}").DECODER
    return decoder
