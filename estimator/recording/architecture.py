"""Record an architecture: its tensors and its forward pass, for one config, with sizes as expressions.

The model is built and run on meta tensors once for the config, and once more for each size doubled (`fit`). A key that
is no size, such as a flag, is changed once, to see whether it matters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import msgspec
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lorabench.estimator.models.expressions import chunk_of, terms
from lorabench.estimator.models.introspect import (
    attends_to_later_tokens,
    described_layers,
    layers_of,
    spec_of,
)
from lorabench.estimator.models.recordings import (
    TOKENS,
    canonical,
    layer_kinds,
    lists_of_layers,
    ordered,
    shortened,
)
from lorabench.estimator.models.spec import Linear
from lorabench.estimator.recording.fit import Changed, Unlike, fit
from lorabench.estimator.recording.recorder import NotRecordable, record
from lorabench.estimator.trace.cuda_semantics import building_on_meta

BATCH, LENGTH = 2, 64
LENGTH_OF_CHUNKS = 601
"""The length for models whose scans pad it to whole chunks, of 256 tokens at most: several chunks, the last not whole.
It is a prime, so that no number of chunks looks like a part of it."""
FEW = (2, 3, 4, 6, 8, 12)
IMPLEMENTATIONS = ("sdpa", "eager")

Tree = dict[str, Any]
Run = Callable[..., Tree]
"""Records the model of a config, on a batch and length."""


def record_architecture(
    config: Mapping[str, Any], log: Callable[[str], None] = lambda text: None, *, forward: bool = True
) -> Tree:
    """Return the recording of the model of ``config``: defaults, aliases, and one variant with its kinds of layers.

    ``forward``: whether its forward pass is recorded too, not its tensors alone.

    Raises:
        NotRecordable: a program cannot say its forward pass.
    """
    kind = CONFIG_MAPPING[config["model_type"]]
    aliases = dict(kind.attribute_map)
    base = {aliases.get(key, key): value for key, value in config.items()}
    count = aliases.get("num_hidden_layers", "num_hidden_layers")
    run: Run = partial(_recorded, forward=forward)
    whole = run(base)
    length = LENGTH_OF_CHUNKS if _pads(whole) else LENGTH
    if length != LENGTH:

        def run(config: Tree, batch: int = BATCH, length: int = length) -> Tree:
            return _recorded(config, batch, length, forward=forward)

        whole = run(base)
    few = _fewer(base, whole, count, run)
    small = run(few)
    defaults = canonical(_defaults(kind), aliases)
    given = defaults | canonical(few, aliases)
    by_layer = lists_of_layers(few, len(small["order"]))
    sizes: dict[str, int] = {}
    changed: dict[str, Changed] = {}
    when: Tree = {}
    longest: list[str] = []
    for key, value in given.items():
        if key in (count, *by_layer):
            continue
        if type(value) is int and value > 1:
            one = _changed_size(few, small, key, value, length, log, run)
            if one is None:
                when[key] = value
            elif one.tree != small:
                sizes[key], changed[key] = value, one
            elif value > length and _attempt({**few, key: length // 2}, run) not in (None, small):
                longest.append(key)  # it cuts sequences that are longer
            continue
        other = 0.0 if "drop" in key and value else _other(value)
        if other is None or _attempt({**few, key: other}, run) != small:
            when[key] = value
    of_config = set(sizes)
    sizes |= {"B": BATCH, "S": length}
    changed |= {"B": Changed(run(few, 2 * BATCH, length)), "S": Changed(run(few, BATCH, 2 * length))}
    fitted = fit(small, sizes, changed)
    used = sorted(of_config & _names(fitted))
    kinds, order = fitted["kinds"], [*map(int, whole["order"])]
    rule: Any = order
    if len(kinds) == 1:
        rule = 0
    elif by_layer:
        lists = [base[key] for key in by_layer]
        rule = next((found for first in (False, True) if (found := _by_lists(by_layer, lists, order, first))), order)
    if rule is order:
        rule = _pattern(order, [*map(int, small["order"])]) or order
    return {
        "defaults": {key: value for key, value in defaults.items() if key in {*used, *when, *longest, count}},
        "aliases": aliases,
        "kinds": kinds,
        "around": fitted["around"],
        "variant": {
            "layers": len(small["order"]),
            "when": when,
            "sizes": {name: sizes[name] for name in used},
            "longest": longest,
            "order": rule,
            "spec": fitted["spec"] | _scans(fitted),
        },
    }


def _by_lists(keys: list[str], lists: list[Any], order: list[int], first: bool) -> Tree | None:
    """Return the kind of layer for what the ``lists`` say of each, if they say ``order``; ``first``: see
    `layer_kinds`."""
    known: dict[str, int] = {}
    said = layer_kinds(lists, first=first)
    if any(known.setdefault(each, number) != number for each, number in zip(said, order, strict=True)):
        return None
    return {"by": keys, "kinds": known, **({"first": True} if first else {})}


def _pattern(order: list[int], few: list[int]) -> Tree | None:
    """Return the kinds of the first layers, those that repeat after them, and that of the last layer if it is another,
    if they say ``order`` and also the order ``few`` of a model with fewer layers."""
    if len(few) == len(order):
        return None
    for last in ({}, {"last": order[-1:]}):
        for start in range(len(few) - len(last)):
            for period in range(1, len(few) - len(last) - start + 1):
                pattern = {"first": order[:start], "repeated": order[start : start + period], **last}
                if all(ordered(pattern, len(each)) == each for each in (order, few)):
                    return pattern
    return None


def _pads(recording: Tree) -> bool:
    """Return whether the program pads a tensor, as scans do to whole chunks."""
    return '"pad"' in msgspec.json.encode([recording["kinds"], recording["around"]]).decode()


def _scans(fitted: Tree) -> Tree:
    """Return what `ModelSpec` says of the recording's scans: the tokens of a chunk, as an expression, 1 if they loop
    over tokens; and whether they loop at all. It is empty without scans.

    Raises:
        NotRecordable: it has scans with chunks of several sizes.
    """
    text = msgspec.json.encode([fitted["kinds"], fitted["around"]]).decode()
    by_token = re.search(r'"loop",\["=(\S*\+)?S[+"]', text) is not None
    chunks = sorted({*re.findall(r"chunks\((\w+)\)", text), *(["1"] if by_token else [])})
    if len(chunks) > 1:
        raise NotRecordable(f"chunks of {' and of '.join(chunks)} tokens")
    if not chunks:
        return {}
    chunk = int(chunks[0]) if chunks[0].isdecimal() else f"={chunks[0]}"
    return {"scan_chunk": chunk, "scan_loops": '"loop"' in text}


def _names(tree: Any) -> set[str]:
    """Return the names in all expressions of ``tree``."""
    if isinstance(tree, str):
        names = {name for term in terms(tree) for name in (*term.above, *term.below)} if tree.startswith("=") else set()
        return {chunk_of(name) or name for name in names}
    if isinstance(tree, dict):
        tree = list(tree.values())
    return set().union(*map(_names, tree)) if isinstance(tree, list) else set()


def _defaults(kind: Any) -> dict[str, Any]:
    """Return the defaults of a config class, as it declares them."""
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"tie_word_embeddings"}
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.name not in common
        and field.default is not dataclasses.MISSING
        and isinstance(field.default, bool | int | float | str | None)
    }


def _other(value: Any) -> Any:
    """Return another value of a key; None if there is no obvious one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return None
    if isinstance(value, float):
        return value / 2 if value else 0.1
    return None


def _attempt(config: Tree, run: Run) -> Tree | None:
    try:
        return run(config)
    except Exception:  # the architecture's own code may raise anything
        return None


def _changed_size(
    few: Tree, small: Tree, key: str, value: int, length: int, log: Callable[[str], None], run: Run
) -> Changed | None:
    """Return the recording with a size doubled, or else halved; None if either changes more than sizes."""
    for factor in (Fraction(2), Fraction(1, 2)):
        if (value * factor).denominator != 1:
            continue
        one = _attempt({**few, key: int(value * factor)}, run)
        if one is None:
            continue
        try:
            fit(small, {key: value, "S": length}, {key: Changed(one, factor)})
        except Unlike as error:
            log(f"{key} {value}: {error}")
            continue
        return Changed(one, factor)
    return None


def _fewer(config: Tree, whole: Tree, count: str, run: Run) -> Tree:
    """Return the config with the fewest layers that has all kinds of layers."""
    for layers in FEW:
        if layers >= whole["spec"]["num_hidden_layers"]:
            break
        fewer = shortened(config, count, layers)
        found = _attempt(fewer, run)
        if found is not None and found["kinds"] == whole["kinds"]:
            return fewer
    return config


def _recorded(config: Tree, batch: int = BATCH, length: int = LENGTH, *, forward: bool) -> Tree:
    """Return the recording with sizes as numbers."""
    found: Tree = {}
    programs: dict[str, Any] = {}
    supported = []
    for implementation in IMPLEMENTATIONS:
        built, model, keeps = _built(config, implementation)
        if model is None:
            continue
        sizes = built.get_text_config()
        path, layers = layers_of(model, sizes.num_hidden_layers, "model")
        if not found:
            declared = [
                {
                    "linears": [*map(_written, layer.linears)],
                    "weights": msgspec.to_builtins(layer.weights),
                    **({"buffers": msgspec.to_builtins(layer.buffers)} if layer.buffers else {}),
                }
                for layer in described_layers(model, path)
            ]
            read = spec_of(model, sizes, {"model_type": config["model_type"]}, "")
            spec = msgspec.to_builtins(read) | {
                "head": _written(read.head),
                "outside": [*map(_written, read.outside)],
                "adapts_experts": read.layers[0].adapts_experts,
            }
            for key in ("name", "config", "model_type", "layers", "assumptions", "longest_closed_form"):
                spec.pop(key, None)
            found = {"spec": {**spec, "keeps_tokens": keeps}, "layers": declared}
            if any(len(weight["shape"]) > 2 for of in declared for weight in of["weights"]):
                # `spec_of` has let peft adapt the experts of this model.
                _, model, _ = _built(config, implementation)
                _, layers = layers_of(model, sizes.num_hidden_layers, "model")
        supported.append(implementation)
        if forward:
            programs[implementation] = record(model, layers, implementation, batch, length).program(path)
    kinds: list[Tree] = []
    order = []
    for number, declared in enumerate(found.pop("layers")):
        bodies = {name: dict(program["layers"][program["order"][number]]) for name, program in programs.items()}
        masks = {body.pop("mask") for body in bodies.values()}
        if len(masks) > 1:
            raise NotRecordable("masks that depend on the attention implementation")
        kind = {**declared, "mask": masks.pop() if masks else "", "programs": bodies}
        if kind not in kinds:
            kinds.append(kind)
        order.append(kinds.index(kind))
    around = {
        name: {key: value for key, value in program.items() if key not in ("layers", "order")}
        for name, program in programs.items()
    }
    found["spec"]["has_sdpa"] = "sdpa" in supported
    recorded: Tree = msgspec.to_builtins({**found, "kinds": kinds, "around": around, "order": [*map(str, order)]})
    return recorded


def _written(linear: Linear) -> Tree:
    """Return a linear layer as a tree, in which it is quantizable unless it says otherwise."""
    tree: Tree = msgspec.to_builtins(linear)
    if linear.quantizable:
        del tree["quantizable"]
    return tree


def _built(config: Tree, implementation: str) -> tuple[Any, Any, bool]:
    """Return transformers' config, the model on meta, and whether it needs its token ids; no model if transformers has
    no such attention for it."""
    shapes = {key: value for key, value in config.items() if key not in TOKENS}
    for keeps in (False, True):
        tokens = {key: config.get(key) for key in TOKENS if key in config} if keeps else dict.fromkeys(TOKENS)
        try:
            built = AutoConfig.for_model(**shapes, **tokens)
            with building_on_meta(), torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    built, dtype=torch.bfloat16, attn_implementation=implementation
                )
        except Exception as error:  # the architecture's own code may raise anything
            if isinstance(error, ValueError) and "scaled_dot_product_attention" in str(error):
                return None, None, keeps
            if keeps:
                raise
            continue
        if attends_to_later_tokens(built, model):
            raise NotRecordable("no causal language model")
        model.train()
        return built, model, keeps
    raise AssertionError
