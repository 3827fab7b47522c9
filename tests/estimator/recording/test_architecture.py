"""A recorded architecture says what one says that is written by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lorabench.estimator.closed_form import step
from lorabench.estimator.closed_form.programs.decoder import Recorded
from lorabench.estimator.closed_form.sizes import Values
from lorabench.estimator.closed_form.walk import walk_every_layer
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.recordings import Recording, find_recording, recorded_spec
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.recording import __main__ as command
from lorabench.estimator.recording.architecture import record_architecture
from tests.small_models import small_config

pytestmark = pytest.mark.filterwarnings("ignore")

FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "phi3", "granite", "olmo2", "gpt_neox")
RECIPES: list[dict[str, Any]] = [
    {"method": "full", "gradient_checkpointing": False, "batch_size": 2},
    {"method": "lora", "batch_size": 1},
    {"method": "qlora", "batch_size": 2, "lora_dropout": 0.0},
]
LARGE = 2**13
"""Bytes of the smallest allocations that are compared: the closed form leaves out some that are smaller."""


def _recording(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Recording:
    recording = msgspec.json.decode(msgspec.json.encode(record_architecture(config)))
    recording["variant"]["model"] = "small"
    file: dict[str, Any] = {"defaults": {}, "aliases": recording["aliases"], "kinds": [], "around": [], "variants": []}
    command.add(file, recording)
    monkeypatch.setattr("lorabench.estimator.models.recordings.contents", lambda model_type: file)
    monkeypatch.setattr("lorabench.estimator.models.recordings.recorded_types", lambda: (config["model_type"],))
    found = find_recording(config)
    assert found is not None
    return found


def _events(resolved: ResolvedRecipe) -> list[int]:
    """Return the bytes of large allocations, and those of large frees as negative numbers, in order.

    Frees between two allocations are sorted: Python and torch free them together.
    """
    sizes: dict[int, int] = {}
    found: list[int] = []
    freed: list[int] = []
    walked = walk_every_layer(resolved, "8.0", 1)
    for block, size in zip(walked.blocks, walked.sizes(Values(resolved), None), strict=True):
        if block < 0:
            continue
        if size:
            sizes[block] = size
            if size >= LARGE:
                found += [*sorted(each for each in freed if -each >= LARGE), size]
                freed.clear()
        else:
            freed.append(-sizes[block])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recording_allocates_as_the_family_that_is_written_by_hand(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(family)
    spec = read_config(config, "small")
    recording = _recording(config, monkeypatch)
    recorded = recorded_spec(recording, config, "small")
    assert _tensors(recorded) == _tensors(spec)
    for options in RECIPES:
        recipe = make_recipe("small", seq_len=200, **options)
        by_hand = _events(ResolvedRecipe(spec, recipe))
        with monkeypatch.context() as patch:
            patch.setattr(step, "decoder_of", lambda _: Recorded(recording))
            assert _events(ResolvedRecipe(recorded, recipe)) == by_hand, options


def test_a_recording_says_the_tensors_of_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("qwen2")
    _recording(config, monkeypatch)
    other = {**config, "hidden_size": 192, "intermediate_size": 500, "num_attention_heads": 6, "num_hidden_layers": 5}
    found = find_recording(other)
    assert found is not None
    assert _tensors(recorded_spec(found, other, "small")) == _tensors(read_config(other, "small"))


def test_a_config_with_another_flag_has_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("qwen3")
    _recording(config, monkeypatch)
    assert find_recording({**config, "attention_bias": True}) is None


def _tensors(spec: ModelSpec) -> list[Any]:
    layers = [(group.linears, sorted(group.weights, key=str)) for group in spec.layers for _ in range(group.count)]
    return [spec.embeddings, layers, spec.final_norm, spec.head, spec.layers_path, spec.tie_word_embeddings]
