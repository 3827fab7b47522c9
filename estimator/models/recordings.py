"""Architectures that were recorded: their tensors and their forward pass, with sizes as expressions of the config.

``recorded/`` has one file for each ``model_type``. `estimator.recording` writes it, from the model that transformers
builds. A file has variants: configs that differ in more than sizes, such as with and without biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lorabench.estimator.models.config_fields.fields import MOST_LAYERS
from lorabench.estimator.models.expressions import evaluated
from lorabench.estimator.models.spec import Buffer, Layers, Linear, ModelSpec, Weight

FOLDER = Path(__file__).parent / "recorded"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
NO_SHAPES = (
    *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *TOKENS,
)
"""Keys of config.json that affect neither shapes nor the training step: padding is masked whatever its token is."""
NO_CONDITION = frozenset({*NO_SHAPES, "quantization_config", "model_type", "rope_theta"})
"""Keys that are no condition of a recording."""
LARGEST_SIZE = 2**24
"""Far above any real model, as in `config_fields`."""


class Recording(NamedTuple):
    """One variant of an architecture, for one config."""

    kinds: list[dict[str, Any]]
    """The kinds of layers that the file has."""
    around: dict[str, Any] | None
    """What is before and after the layers, by attention implementation; None if only the tensors were recorded."""
    order: list[int]
    """The kind of each layer."""
    sizes: dict[str, int]
    """The config's sizes, by the names in expressions."""
    spec: dict[str, Any]
    """The fields of `ModelSpec`, with expressions."""
    longest: int = 0
    """Longest sequence for which the programs hold; 0 if they hold for any."""


@cache
def recorded_types() -> tuple[str, ...]:
    """Return the ``model_type`` values that were recorded."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def contents(model_type: str) -> dict[str, Any]:
    """Return the contents of the file of ``model_type``."""
    found: dict[str, Any] = msgspec.json.decode((FOLDER / f"{model_type}.json").read_bytes())
    return found


def canonical(config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys of ``config`` that may matter, by transformers' own names, with rotary settings reduced to what
    changes the step: ``rope_type`` and the rotated part."""
    keys = {aliases.get(key, key): value for key, value in config.items()}
    rope = keys.pop("rope_parameters", None) or keys.pop("rope_scaling", None)
    keys.pop("rope_scaling", None)
    rope = rope if isinstance(rope, dict) else {}
    found = {key: value for key, value in keys.items() if key not in NO_CONDITION}
    nested = [each for each in rope.values() if isinstance(each, dict)] or [rope]
    types = sorted({str(each.get("rope_type", each.get("type", "default"))) for each in nested})
    found["rope_type"] = "+".join(types)
    parts = [each["partial_rotary_factor"] for each in nested if each.get("partial_rotary_factor") is not None]
    if parts:
        found["partial_rotary_factor"] = parts[0]
    return found


def find_recording(config: Mapping[str, Any]) -> Recording | None:
    """Return the recording for ``config``, the contents of a config.json; None if there is none."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in recorded_types():
        return None
    file = contents(model_type)
    given = file["defaults"] | canonical(config, file["aliases"])
    for variant in file["variants"]:
        if all((given.get(key) or None) == (value or None) for key, value in variant["when"].items()) and all(
            _is_size(given.get(name), LARGEST_SIZE) for name in (*variant["sizes"], *variant["longest"])
        ):
            layers = given.get(file["aliases"].get("num_hidden_layers", "num_hidden_layers"))
            order = _order(variant["order"], given, layers) if _is_size(layers, MOST_LAYERS) else None
            if order is not None:
                sizes = {name: given[name] for name in variant["sizes"]}
                around = None if variant["around"] is None else file["around"][variant["around"]]
                longest = min((given[name] for name in variant["longest"]), default=0)
                return Recording(file["kinds"], around, order, sizes, variant["spec"], longest)
    return None


def _is_size(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value <= most


def _order(rule: Any, given: Mapping[str, Any], layers: Any) -> list[int] | None:
    if isinstance(rule, list):
        return rule if len(rule) == layers else None
    if isinstance(rule, int):
        return [rule] * layers
    if "repeated" in rule:
        return ordered(rule, layers) if given.get("layer_types") is None else None
    lists = [given.get(key) for key in rule["by"]]
    if any(not isinstance(each, list) or len(each) != layers for each in lists):
        return None
    kinds = [rule["kinds"].get(kind) for kind in layer_kinds(lists, first=rule.get("first", False))]
    return None if None in kinds else kinds


def layer_kinds(lists: Sequence[Any], *, first: bool = False) -> list[str]:
    """Return for each layer what the ``lists``, of one entry a layer, say of it.

    ``first``: the first layer is none of the others' kinds, whatever they say.
    """
    said = [" ".join(map(str, entries)) for entries in zip(*lists, strict=True)]
    return [f"first {each}" if first and at == 0 else each for at, each in enumerate(said)]


def few_layers(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the config of ``model``, which was recorded, with as few layers as the recording is for."""
    file = contents(config["model_type"])
    [variant] = [variant for variant in file["variants"] if variant["model"] == model]
    if isinstance(variant["order"], list):
        return dict(config)
    counts = ("num_hidden_layers", file["aliases"].get("num_hidden_layers"))
    return shortened(config, next((key for key in counts if key in config), counts[0]), variant["layers"])


def shortened(config: Mapping[str, Any], count: str, layers: int) -> dict[str, Any]:
    """Return ``config`` with so many ``layers``, in its key ``count`` and in its lists of one entry a layer."""
    found = {**config, count: layers}
    for key in lists_of_layers(config, config.get(count)):
        found[key] = config[key][:layers]
    return found


def lists_of_layers(config: Mapping[str, Any], layers: Any) -> list[str]:
    """Return the keys of ``config`` that have one entry for each of its ``layers``."""
    return sorted(key for key, value in config.items() if isinstance(value, list) and len(value) == layers > 0)


def ordered(pattern: Mapping[str, list[int]], layers: int) -> list[int]:
    """Return the kind of each layer: those of the first ones, then those that repeat, and those of the last ones."""
    first, repeated, last = pattern["first"], pattern["repeated"], pattern.get("last", [])
    inner = layers - len(first) - len(last)
    kinds = [*first, *(repeated[at % len(repeated)] for at in range(inner)), *last]
    return kinds[:layers]


def recorded_spec(recording: Recording, config: Mapping[str, Any], name: str) -> ModelSpec:
    """Return the shapes of the model of ``config``.

    Raises:
        ValueError: the sizes contradict each other.
    """
    values = evaluated(recording.spec, recording.sizes)
    adapts = values.pop("adapts_experts")
    layers = []
    for kind, group in groupby(recording.order):
        declared = recording.kinds[kind]
        linears = msgspec.convert(evaluated(declared["linears"], recording.sizes), tuple[Linear, ...])
        weights = msgspec.convert(evaluated(declared["weights"], recording.sizes), tuple[Weight, ...])
        buffers = msgspec.convert(evaluated(declared.get("buffers", []), recording.sizes), tuple[Buffer, ...])
        windowed = declared["mask"] == "sliding"
        number = None if recording.around is None else kind
        layers.append(Layers(len(list(group)), linears, weights, number, windowed, adapts, buffers))
    shapes = {key: value for key, value in config.items() if key not in NO_SHAPES}
    keeps = values.pop("keeps_tokens")
    tokens = {key: config[key] for key in TOKENS if key in config} if keeps else dict.fromkeys(TOKENS)
    fields = {
        **values,
        "name": name,
        "model_type": config["model_type"],
        "config": {**shapes, **tokens},
        "num_hidden_layers": len(recording.order),
        "max_position_embeddings": int(config.get("max_position_embeddings") or values["max_position_embeddings"]),
        "layers": layers,
        "longest_closed_form": recording.longest,
    }
    return msgspec.convert(fields, ModelSpec, from_attributes=True)
