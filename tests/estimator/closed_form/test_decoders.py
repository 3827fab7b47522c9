"""The forward passes of the families."""

from __future__ import annotations

from lorabench.estimator.closed_form.decoders import DECODERS
from lorabench.estimator.models.read_config import MODEL_TYPES


def test_every_family_whose_shapes_are_known_has_a_forward_pass() -> None:
    assert sorted(DECODERS) == sorted(MODEL_TYPES)
