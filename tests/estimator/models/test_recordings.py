"""Recordings are found for the configs that they hold for."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.models import recordings
from lorabench.estimator.models.recordings import find_recording, layer_kinds, ordered, shortened

FILE: dict[str, Any] = {
    "defaults": {"num_hidden_layers": 4, "top": 2048},
    "aliases": {},
    "kinds": [{}, {}, {}],
    "around": [{}],
    "variants": [
        {
            "layers": 3,
            "when": {"bias": False},
            "sizes": {"hidden": 8},
            "longest": ["top"],
            "order": {"by": ["attention", "mlp"], "kinds": {"full dense": 0, "full sparse": 1, "window sparse": 2}},
            "around": 0,
            "spec": {},
        }
    ],
}
CONFIG: dict[str, Any] = {
    "model_type": "some",
    "hidden": 16,
    "num_hidden_layers": 3,
    "attention": ["full", "window", "full"],
    "mlp": ["dense", "sparse", "sparse"],
}


@pytest.fixture(autouse=True)
def one_recorded_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "recorded_types", lambda: ("some",))
    monkeypatch.setattr(recordings, "contents", lambda model_type: FILE)


def test_lists_of_layers_say_the_kind_of_each_layer() -> None:
    found = find_recording(CONFIG)
    assert found is not None
    assert (found.order, found.sizes, found.longest) == ([0, 2, 1], {"hidden": 16}, 2048)


def test_the_length_that_a_recording_holds_for_is_the_config_s() -> None:
    found = find_recording({**CONFIG, "top": 512})
    assert found is not None
    assert found.longest == 512


@pytest.mark.parametrize(
    "change",
    [
        {"attention": ["full", "window"]},
        {"attention": None},
        {"mlp": ["dense", "dense", "sparse"]},
        {"bias": True},
        {"hidden": 0},
        {"top": None},
        {"model_type": "other"},
    ],
    ids=str,
)
def test_no_recording_is_found_for_what_was_not_recorded(change: dict[str, Any]) -> None:
    assert find_recording({**CONFIG, **change}) is None


def test_fewer_layers_have_shorter_lists() -> None:
    assert shortened({**CONFIG, "other": [1, 2]}, "num_hidden_layers", 2) == {
        **CONFIG,
        "num_hidden_layers": 2,
        "attention": ["full", "window"],
        "mlp": ["dense", "sparse"],
        "other": [1, 2],
    }


def test_the_first_and_the_last_layers_may_be_of_other_kinds() -> None:
    pattern = {"first": [0], "repeated": [1, 2], "last": [3]}
    assert ordered(pattern, 2) == [0, 3]
    assert ordered(pattern, 6) == [0, 1, 2, 1, 2, 3]


def test_the_first_layer_may_be_unlike_others_of_which_the_lists_say_the_same() -> None:
    assert layer_kinds([["full", "window", "full"]], first=True) == ["first full", "window", "full"]
