"""The forward passes of the families."""

from __future__ import annotations

from pathlib import Path

from lorabench.estimator.closed_form import decoders
from lorabench.estimator.closed_form.decoders import decoder_of
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.models.read_config import MODEL_TYPES
from tests.small_models import small_model

OWN = {path.stem for path in Path(decoders.__path__[0]).glob("*.py")} - {"__init__", "decoder"}


def test_every_forward_pass_is_that_of_a_family() -> None:
    assert set(MODEL_TYPES) >= OWN


def test_a_family_without_a_file_runs_llamas_forward_pass_and_others_their_own() -> None:
    for model_type in MODEL_TYPES:
        assert (type(decoder_of(small_model(model_type))) is Decoder) == (model_type not in OWN), model_type
