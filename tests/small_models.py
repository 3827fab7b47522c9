"""Models of every family, small enough to build, to train and to trace in a moment."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.recordings import contents, few_layers, recorded_types
from lorabench.estimator.models.spec import ModelSpec

GROUPED = {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 32},
    "gemma": {"num_key_value_heads": 1, "head_dim": 32},
    "gemma2": {**GROUPED, "head_dim": 32},
    "phi3": GROUPED,
    "granite": GROUPED,
    "olmo2": GROUPED,
    "gpt2": {},
    "gpt_neox": {},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **GROUPED,
        "head_dim": 32,
        "moe_intermediate_size": 128,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}
"""What each family's config has besides its sizes."""

TINY: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
"""Sizes of models that train many times over in a test, in whole blocks of 64 (bench/machine/unpacking.py)."""

MIXTURES = ("mixtral", "qwen3_moe")
"""Families whose experts are stacked in one parameter each."""


def small_config(family: str, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a model of ``family``; ``changes`` are keys of a Llama's config."""
    sizes = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    }
    config = {"model_type": family, **sizes, **FAMILIES[family], **changes}
    if family == "gpt2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}
        config = {names.get(key, key): value for key, value in config.items()}
    return config


def small_model(family: str, **changes: Any) -> ModelSpec:
    """Return the shapes of a model of ``family``."""
    return read_config(small_config(family, **changes), f"small/{family}")


def recorded_models(*, with_closed_form: bool) -> list[str]:
    """Return the catalogue's name of each model whose architecture was recorded."""
    variants = [variant for model_type in recorded_types() for variant in contents(model_type)["variants"]]
    return [variant["model"] for variant in variants if not with_closed_form or variant["around"] is not None]


def recorded_config(name: str) -> dict[str, Any]:
    """Return the config.json of a model that was recorded, with few layers."""
    from lorabench.estimator.recording.configs import config_of  # it needs transformers

    return few_layers(config_of(name), name)
