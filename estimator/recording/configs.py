"""The configs that are recorded beside those of the catalogue: transformers' own defaults of each model type."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lorabench.estimator.models.catalogue import CONFIGS
from lorabench.estimator.models.recordings import NO_SHAPES

Tree = dict[str, Any]
PREFIX = "transformers/"
"""Begins the names of these configs: ``transformers/helium``."""
CHANGES: dict[str, Tree] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dots1": {"n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408},
    "ministral": {"head_dim": 128},
}
"""model type → keys without which the defaults make no model."""


def default_config(model_type: str) -> Tree:
    """Return transformers' defaults of a model type, as a config.json would have them.

    Raises:
        Exception: whatever the class of the config raises if its defaults contradict each other.
    """
    config = CONFIG_MAPPING[model_type](**CHANGES.get(model_type, {})).to_dict()
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"tie_word_embeddings", "model_type"}
    kept = {key: value for key, value in config.items() if key not in common and key not in NO_SHAPES}
    return {"model_type": model_type, **kept}


def config_of(model: str) -> Tree:
    """Return the config that ``model`` was recorded from: of the catalogue, or transformers' defaults."""
    if model.startswith(PREFIX):
        return default_config(model.removeprefix(PREFIX))
    config: Tree = msgspec.json.decode((CONFIGS / f"{model}.json").read_bytes())
    text: Tree = config.get("text_config", config)
    return text


def default_types() -> Iterator[str]:
    """Yield the model types that transformers builds as causal language models."""
    yield from sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
