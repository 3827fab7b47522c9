"""Read a config.json: through the file of its family, or, if there is none, by building the model on meta."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.models.recordings import find_recording, recorded_spec
from lorabench.estimator.models.spec import ModelSpec, Stored
from lorabench.estimator.typed_values import convert

FAMILIES = Path(__file__).parent / "families"
MODEL_TYPES = tuple(sorted(path.stem for path in FAMILIES.glob("*.py") if path.stem != "__init__"))
"""The ``model_type`` values with a file in `families`, and so with a closed form."""

NAME = r"[\w.-]{1,100}"
"""Regular expression of the names of families."""
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
    """Return the shapes of the model of ``config``, the contents of a config.json.

    If its family is in `MODEL_TYPES`, the spec's own ``config`` has all defaults, in transformers 5's spelling. It has
    only the keys that affect the shapes or the training step. ``AutoConfig.for_model(**spec.config)`` accepts it. For
    any other family, transformers builds the model on meta, and the shapes are read from it.

    Args:
        config: the parsed file.
        name: the model's name in the spec and in errors.

    Raises:
        UserError: the model is not a causal language model, or a quantised checkpoint; a key is missing, of the wrong
            type or out of range; shapes contradict each other; transformers cannot build the family, or torch or
            transformers is not installed for that.
    """
    if not isinstance(config, dict):
        raise UserError(f"{name}: a model config is a JSON object, this is a {type(config).__name__}")
    model_type = config.get("model_type")
    if model_type is None:
        raise UserError(f"{name}: no model_type: is this the config.json of a transformers model?")
    if config.get("quantization_config") is not None:
        return _quantized(config, name)
    if isinstance(config.get("text_config"), dict):
        return _language_model(config, name)
    _refuse_what_is_no_causal_model(config, name)
    if not (isinstance(model_type, str) and re.fullmatch(NAME, model_type)):
        raise UserError(f"{name}: model_type must be a name such as llama, not {quoted(model_type)}")
    if model_type not in MODEL_TYPES:
        recording = find_recording(config)
        if recording is None:
            return _read_by_building(config, name)
        try:
            return recorded_spec(recording, config, name)
        except ValueError as error:
            raise UserError(f"{name}: not a possible {model_type} config: {error}") from error
    renamed = OTHER_NAMES.get(model_type, {})
    keys = {renamed.get(key, key) if renamed.get(key) not in config else key: value for key, value in config.items()}
    family = importlib.import_module(f"lorabench.estimator.models.families.{model_type}")
    try:
        spec: ModelSpec = convert(keys, family.Config).spec(name)
    except UserError as error:
        raise UserError(f"{name}: not a possible {model_type} config: {error}") from error
    return spec


def _quantized(config: dict[str, Any], name: str) -> ModelSpec:
    """Return the shapes of a model whose checkpoint is quantised."""
    stored, stands_in = _stored(config["quantization_config"], name)
    spec = read_config({key: value for key, value in config.items() if key != "quantization_config"}, name)
    said = f"{name}: its weights are stored in {stored.what}{stands_in}"
    return replace(spec, stored=stored, assumptions=(*spec.assumptions, said))


def _stored(quantization: Any, name: str) -> tuple[Stored, str]:
    """Return how a checkpoint is stored, and a clause on what is counted instead, if anything.

    Raises:
        UserError: it is stored in a format whose size is not known here.
    """
    found = quantization if isinstance(quantization, dict) else {}
    method, bits = str(found.get("quant_method", "")).lower(), found.get("bits", found.get("w_bit"))
    if method in ("bitsandbytes", "") and found.get("load_in_4bit"):
        kind, double = found.get("bnb_4bit_quant_type", "fp4"), bool(found.get("bnb_4bit_use_double_quant", False))
        if kind in ("nf4", "fp4"):
            options = {"method": "qlora", "quant_type": kind, "double_quant": double}
            return Stored(f"4 bits by bitsandbytes ({kind})", options), ""
    if method in ("gptq", "awq") and bits == 4:
        options = {"method": "qlora", "quant_type": "nf4", "double_quant": True}
        instead = ", and are counted as those of bitsandbytes: nf4 with double quantisation"
        return Stored(f"4 bits by {method.upper()}", options), instead
    kind = method or "a format without a name"
    raise UserError(
        f"{name}: has a quantization_config: its weights are stored as {kind}, and lorabench knows adapters on "
        "4-bit weights of bitsandbytes, GPTQ and AWQ: name the model that it was quantised from, and --method qlora to "
        "quantise it here"
    )


TOWERS = {"vision_config": "vision tower", "audio_config": "audio tower", "speech_config": "audio tower"}
"""Keys of the config of a multimodal model → the part that they describe."""


def _language_model(config: dict[str, Any], name: str) -> ModelSpec:
    """Return the shapes of the language model in a multimodal model, such as Gemma3ForConditionalGeneration.

    Text is all that it is trained on, so the other towers need not be loaded.
    """
    outer = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if key in config}
    text = {**outer, **config["text_config"]}
    if "text_config" in text:
        raise UserError(f"{name}: its text_config has a text_config of its own: name the config.json of a model")
    spec = read_config(text, name)
    towers = " and ".join(dict.fromkeys(what for key, what in TOWERS.items() if config.get(key)))
    without = f", without its {towers}" if towers else ""
    said = f"{name}: only its language model ({spec.model_type}) is loaded and trained{without}"
    return replace(spec, assumptions=(*spec.assumptions, said))


def has_closed_form(spec: ModelSpec) -> bool:
    """Return whether the architecture of ``spec`` has a closed form, so that its memory and speed need no torch."""
    return spec.model_type in MODEL_TYPES or spec.layers[0].kind is not None


def no_closed_form(model_type: str) -> str:
    """Return a clause that ``model_type`` has no closed form, with the families that have one."""
    return f"model_type {quoted(model_type)} has no closed form here (families with one: {', '.join(MODEL_TYPES)})"


def _read_by_building(config: dict[str, Any], name: str) -> ModelSpec:
    from lorabench.estimator.models.introspect import introspect

    model_type = config["model_type"]
    try:
        return introspect(config, name)
    except ImportError as error:
        raise UserError(
            f"{name}: {no_closed_form(model_type)}, and a trace needs {error.name}, which is not installed: "
            "pip install 'lorabench[bench]'"
        ) from error
    except UserError as error:
        code = "; its own code (auto_map) is never run" if config.get("auto_map") else ""
        raise UserError(f"{error}{code}") from error


def _refuse_what_is_no_causal_model(config: dict[str, Any], name: str) -> None:
    if config.get("is_encoder_decoder"):
        raise UserError(f"{name}: an encoder-decoder, not a causal language model")
    if config.get("per_layer_config"):
        raise UserError(f"{name}: has a per_layer_config: layers that differ one by one are not supported")
    if config.get("use_bidirectional_attention") not in (None, False, "vision"):  # of text alone "vision" is causal
        raise UserError(f"{name}: with use_bidirectional_attention it is not a causal language model")
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(word, str) for word in classes):
        raise UserError(f"{name}: architectures must be a list of class names")
    if classes and not any(word.endswith(("ForCausalLM", "LMHeadModel")) for word in classes):
        raise UserError(
            f"{name}: its architecture is {quoted(', '.join(classes))}, not a causal language model (…ForCausalLM): "
            "name the causal model that it was made from"
        )
