"""Find the linear layers that get adapters: a recipe's `target_modules` in one model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorabench.estimator.bounded_time import within
from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.methods.base import Adapter, is_pattern
from lorabench.estimator.methods.lora import named, older_names
from lorabench.estimator.models.spec import Linear, ModelSpec
from lorabench.estimator.recipes.modules_to_save import embeddings_and_head

MATCHING_SECONDS = 1.0
"""Most of the processor's time for a regular expression on all paths of a model. It usually takes milliseconds."""


def resolve_target_modules(spec: ModelSpec, adapter: Adapter | None) -> tuple[str, ...]:
    """Return the `Linear.name` of every linear layer that gets an adapter, without duplicates, in the model's order.

    The names are paths inside a layer, such as ``attn.c_proj``. The last component would be ambiguous in GPT-2, which
    has a ``c_proj`` in attention and one in the feed-forward. peft accepts paths, since it matches the end of a
    module's name. Users may write the last component, or a longer end of the path. As in peft, names that no layer has
    are passed over if others match (`warn_of_unmatched`). Without ``adapter`` (full fine-tuning) the result is empty.

    Raises:
        UserError: no linear layer has any of the names, or the model has no linear layers in the requested part; a
            regular expression matches no layer, or not all decoder layers alike.
    """
    if adapter is None:
        return ()
    targets = adapter.target_modules
    if targets is None:
        return adapter.default_targets(spec)
    linears = list({linear.name: linear for group in spec.groups for linear in group.linears}.values())
    experts = _expert_names(spec, adapter)
    if targets == "all-linear":
        return tuple(linear.name for linear in linears if linear.name.rpartition(".")[2] not in experts)
    if targets in ("attention", "mlp"):
        part = "attention" if targets == "attention" else "feed_forward"
        names = tuple(linear.name for linear in linears if linear.part == part)
        if not names:
            raise UserError(
                f"target_modules {targets}: {spec.name} has no linear layers there that adapters can attach to: "
                "use all-linear"
            )
        return names
    return _matched(spec, targets) if is_pattern(targets) else _reached_by_names(spec, adapter, linears, experts)


def _reached_by_names(spec: ModelSpec, adapter: Adapter, linears: list[Linear], experts: set[str]) -> tuple[str, ...]:
    """Return the linear layers that the names in ``target_modules`` reach; ``experts``: the names that reach no others.

    Raises:
        UserError: they reach neither linear layers nor experts, or an embedding or head is among them.
    """
    wanted = named(adapter.target_modules)
    found = tuple(
        linear.name
        for linear in linears
        if linear.name.rpartition(".")[2] not in experts and any(_ends_with(linear.name, name) for name in wanted)
    )
    missing = unmatched_targets(spec, adapter)
    for name in missing:
        if any(_ends_with(module.path, name) for module in embeddings_and_head(spec)):
            raise UserError(
                f"target_modules: adapters cannot attach to {name} of {spec.name}: train it in full with "
                f"--modules-to-save {name.rsplit('.', 1)[-1]}"
            )
    if not found and not experts & set(wanted):
        raise UserError(f"target_modules: {_no_layer(spec, missing[0])}")
    return found


def unmatched_targets(spec: ModelSpec, adapter: Adapter) -> tuple[str, ...]:
    """Return the names in ``target_modules`` that no layer of ``spec`` has. peft adapts the others, and is silent."""
    paths = {linear.name for group in spec.groups for linear in group.linears}
    experts = _expert_names(spec, adapter)
    return tuple(
        name
        for name in named(adapter.target_modules)
        if name not in experts and not any(_ends_with(path, name) for path in paths)
    )


def warn_of_unmatched(spec: ModelSpec, adapter: Adapter) -> Iterator[str]:
    """Yield a warning for the names in ``target_modules`` that no layer has."""
    missing = unmatched_targets(spec, adapter)
    if missing:
        yield f"target_modules: {spec.name} has no linear layer {' or '.join(missing)}: peft adapts the others alone"


def _no_layer(spec: ModelSpec, name: str) -> str:
    last_components = {linear.name.rsplit(".", 1)[-1] for group in spec.groups for linear in group.linears}
    if name in ("all", "linear", "all_linear"):
        return f"{name} is another tool's word: write all-linear"
    return f"{spec.name} has no linear layer {quoted(name)}: {did_you_mean(name, last_components)}"


def _expert_names(spec: ModelSpec, adapter: Adapter) -> set[str]:
    """Return the names by which peft finds experts or routers of ``spec``.

    peft takes every target of these names for the experts, also where linear layers have them, such as those of a
    shared expert (`_convert_peft_config_moe`). It does so for LoRA alone.
    """
    if not spec.adapts_experts:
        return set()
    weights = [weight for group in spec.layers for weight in group.adapted_experts]
    reached = [weight for weight in weights if adapter.expert_tensors(weight, spec.model_type)]
    return {name for weight in reached for name in older_names(weight.name.rpartition(".")[2], spec.model_type)}


LANGUAGE_MODELS = ("model.language_model.", "language_model.model.", "model.text_model.", "language_model.")
"""Paths of the language model in multimodal models. It alone is trained here, and its path is ``model.``"""


def _matched(spec: ModelSpec, pattern: str) -> tuple[str, ...]:
    """Return the linear layers whose whole path a regular expression matches, as peft reads a text.

    Raises:
        UserError: it matches no layer, or only some of the decoder layers, or takes more than `MATCHING_SECONDS`.
    """
    ends = {spec.layers_path, *(spec.layers_path.replace("model.", path, 1) for path in LANGUAGE_MODELS)}
    slow = f"target_modules: {quoted(pattern)} takes too long to match: write it without repetitions of repetitions"
    with within(MATCHING_SECONDS, slow):
        for path in sorted(ends, key=lambda path: path != spec.layers_path):
            found = _matched_under(spec, re.compile(pattern), path)
            if found:
                return found
    raise UserError(
        f"target_modules: no path of a linear layer of {spec.name} matches {quoted(pattern)}: {_example(spec)}"
    )


def _example(spec: ModelSpec) -> str:
    return f"paths are such as {spec.layers_path}.0.{spec.layers[0].linears[0].name}"


def _matched_under(spec: ModelSpec, pattern: re.Pattern[str], layers_path: str) -> tuple[str, ...]:
    found = {linear.name: {pattern.fullmatch(linear.name) is not None} for linear in spec.outside}
    index = 0
    for group in spec.layers:
        for linear in group.linears:
            matches = found.setdefault(linear.name, set())
            for layer in range(index, index + group.count):
                matches.add(pattern.fullmatch(f"{layers_path}.{layer}.{linear.name}") is not None)
        index += group.count
    partly = [name for name, matches in found.items() if len(matches) == 2]
    if partly:
        raise UserError(
            f"target_modules: {quoted(pattern.pattern)} matches {partly[0]} in some layers only, and adapters are "
            "counted in all: write one for all layers"
        )
    return tuple(name for name, matches in found.items() if matches == {True})


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")
