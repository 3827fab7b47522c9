"""Read a config.json: through the file of its family, or, if there is none, by building the model on meta."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.typed_values import convert

FAMILIES = Path(__file__).parent / "families"
MODEL_TYPES = tuple(sorted(path.stem for path in FAMILIES.glob("*.py") if path.stem != "__init__"))
"""The ``model_type`` values with a file in `families`, and so with a closed form."""

OTHER_NAMES = {
    "gpt2": {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    "mixtral": {"num_experts": "num_local_experts"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
}
"""model_type → aliases of keys (transformers' ``attribute_map``)."""


def read_config(config: dict[str, Any], name: str) -> ModelSpec:
    """Return the shapes of the model that ``config``, the contents of a config.json, describes.

    Where `MODEL_TYPES` lacks its family, transformers builds the model without weights to tell them. Otherwise the
    spec's own ``config`` has every default filled in and only the keys that decide the shapes or the training
    step, spelled as transformers 5 does; ``AutoConfig.for_model(**spec.config)`` takes it.

    Args:
        config: the parsed file.
        name: what to call the model, in the spec and in errors.

    Raises:
        UserError: not a causal language model, a quantised checkpoint, a key that is missing, of the wrong type or out
            of range, or shapes that contradict each other; a family without a file here that transformers cannot
            build, or that cannot be built for want of torch or transformers.
    """
    if not isinstance(config, dict):
        raise UserError(f"{name}: a model config is a JSON object, this is a {type(config).__name__}")
    model_type = config.get("model_type")
    if model_type is None:
        raise UserError(f"{name}: no model_type: is this the config.json of a transformers model?")
    _refuse_what_is_no_causal_model(config, name)
    if not isinstance(model_type, str):
        raise UserError(f"{name}: model_type must be a name such as llama, and is {model_type!r}")
    if model_type not in MODEL_TYPES:
        return _read_by_building(config, name)
    renamed = OTHER_NAMES.get(model_type, {})
    keys = {renamed.get(key, key) if renamed.get(key) not in config else key: value for key, value in config.items()}
    family = importlib.import_module(f"lorabench.estimator.models.families.{model_type}")
    try:
        spec: ModelSpec = convert(keys, family.Config).spec(name)
    except UserError as error:
        raise UserError(f"{name}: not a possible {model_type} config: {error}") from error
    return spec


def no_closed_form(model_type: str) -> str:
    """Return a clause that ``model_type`` has no closed form, with the families that have one."""
    return f"model_type {model_type!r} has no closed form here (those that have: {', '.join(MODEL_TYPES)})"


def _read_by_building(config: dict[str, Any], name: str) -> ModelSpec:
    from lorabench.estimator.models.introspect import introspect

    model_type = config["model_type"]
    try:
        return introspect(config, name)
    except ImportError as error:
        raise UserError(
            f"{name}: {no_closed_form(model_type)}, and to trace it takes {error.name}, which is not installed: "
            "pip install 'lorabench[bench]'"
        ) from error
    except UserError as error:
        code = "; its own code (auto_map) is never run" if config.get("auto_map") else ""
        raise UserError(f"{error}{code}") from error


def _refuse_what_is_no_causal_model(config: dict[str, Any], name: str) -> None:
    if config.get("quantization_config") is not None:
        raise UserError(
            f"{name}: has a quantization_config, so its weights are stored quantised, which cannot be trained as "
            "they are: name the model that it was quantised from, and --method qlora to quantise it here"
        )
    if config.get("is_encoder_decoder"):
        raise UserError(f"{name}: an encoder-decoder, not a causal language model")
    if config.get("per_layer_config"):
        raise UserError(f"{name}: has a per_layer_config: layers that differ one by one are not supported")
    if config.get("use_bidirectional_attention"):
        raise UserError(f"{name}: use_bidirectional_attention makes it no causal language model")
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(word, str) for word in classes):
        raise UserError(f"{name}: architectures must be a list of class names")
    if classes and not any(word.endswith(("ForCausalLM", "LMHeadModel")) for word in classes):
        raise UserError(
            f"{name}: its architecture is {', '.join(classes)}, not a causal language model (…ForCausalLM): "
            "name the causal model that it was made from"
        )
