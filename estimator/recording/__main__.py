"""Record architectures: ``python -m lorabench.estimator.recording [CONFIG.json | MODEL_TYPE…]``.

Without arguments it records each model of the catalogue whose config no recording fits, and each other model type that
transformers can build, from the defaults of its config. It writes ``estimator/models/recorded/``. A forward pass is
kept only if the closed form says with it what a trace says.

``python -m lorabench.estimator.recording --check [MODEL_TYPE…]`` compares the recordings with traces again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import torch

from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.errors import NoClosedForm, UserError
from lorabench.estimator.models.catalogue import CONFIGS
from lorabench.estimator.models.read_config import MODEL_TYPES, read_config
from lorabench.estimator.models.recordings import FOLDER, contents, few_layers, find_recording, recorded_types
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.quiet import quiet_libraries
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recording.architecture import record_architecture
from lorabench.estimator.recording.configs import PREFIX, config_of, default_config, default_types
from lorabench.estimator.trace.trace import trace

Tree = dict[str, Any]
RECIPES: tuple[Tree, ...] = (
    {"method": "full", "batch_size": 2, "gradient_checkpointing": False},
    {"method": "full", "batch_size": 1},
    {"method": "lora", "batch_size": 2, "lora_dropout": 0.0},
    {"method": "lora", "batch_size": 1, "gradient_checkpointing": False, "target_modules": "attention"},
    {"method": "qlora", "batch_size": 1, "lora_dropout": 0.0},
)
LENGTH = 512
LENGTH_OF_PART = 450
"""The length of a sequence whose last chunk is not whole, for models with scans."""
MOST_ERROR = 0.01
"""Largest error of the closed form's peak against the trace's. Recordings beyond it are not kept."""


def add(file: Tree, recording: Tree) -> None:
    """Add a recording to the contents of a file: a variant, and the kinds of layers that it lacks."""
    numbers = [_number(file["kinds"], kind) for kind in recording["kinds"]]
    variant = recording["variant"]
    order = variant["order"]
    if isinstance(order, int):
        variant["order"] = numbers[order]
    elif isinstance(order, list):
        variant["order"] = [numbers[kind] for kind in order]
    elif "repeated" in order:
        variant["order"] = {key: [numbers[kind] for kind in kinds] for key, kinds in order.items()}
    else:
        variant["order"] = {**order, "kinds": {said: numbers[kind] for said, kind in order["kinds"].items()}}
    if recording["around"] is None:
        variant["around"] = None
    else:
        variant["around"] = _number(file["around"], recording["around"])
    file["defaults"] |= recording["defaults"]
    file["variants"].append(variant)


def _number(known: list[Any], one: Any) -> int:
    if one not in known:
        known.append(one)
    return known.index(one)


def with_programs(recording: Tree, implementations: Sequence[str]) -> Tree:
    """Return the recording with the programs of these attention implementations; with its tensors only if none."""

    def kept(programs: Tree) -> Tree:
        return {name: program for name, program in programs.items() if name in implementations}

    kinds = [{**kind, "programs": kept(kind["programs"])} for kind in recording["kinds"]]
    return {**recording, "kinds": kinds, "around": kept(recording["around"]) or None}


def error_of(spec: ModelSpec, attention: str) -> float:
    """Return the largest error of the closed form's peak against the trace's, over `RECIPES` with ``attention``.

    Estimates trace a recipe that the closed form refuses, such as 4-bit weights that a program reads.

    Raises:
        NoClosedForm: the closed form refuses them all.
    """
    errors, refused = [], None
    lengths = (LENGTH, LENGTH_OF_PART) if spec.scan_chunk else (LENGTH,)
    for options, length in product(RECIPES, lengths):
        try:
            resolved = recipe_for(spec, seq_len=length, attn_implementation=attention, **options)
            refuse_impossible(resolved)
            traced = trace(resolved, compute_capability="8.0").memory.peak_allocated_bytes
        except UserError:  # transformers and peft cannot run it
            continue
        try:
            estimated = Training(resolved, "8.0").memory().peak_allocated_bytes
        except NoClosedForm as refusal:
            refused = refusal
            continue
        errors.append(abs(estimated / traced - 1))
    if refused is not None and not errors:
        raise refused
    return max(errors, default=0.0)


def write(model_type: str, file: Tree) -> None:
    """Write a file, one statement a line."""
    text = msgspec.json.encode(file).decode().replace('"],["', '"],\n["').replace("],[[", "],\n[[")
    (FOLDER / f"{model_type}.json").write_text(f"{text}\n")
    contents.cache_clear()
    recorded_types.cache_clear()


def record(config: Tree, model: str) -> str:
    """Record the model of ``config``, and return what was kept."""
    before = contents(config["model_type"]) if config["model_type"] in recorded_types() else None
    try:
        recording = record_architecture(config)
    except Exception as failure:  # the architecture's own code may raise anything
        recording = with_programs(record_architecture(config, forward=False), ())
        _keep(config["model_type"], model, recording, before)
        return f"its tensors only: {type(failure).__name__}: {failure}"
    said, kept, errors = [], [], []
    for implementation in recording["around"]:
        _keep(config["model_type"], model, with_programs(recording, [implementation]), before)
        try:
            error = error_of(read_config(few_layers(config, model), model), implementation)
        except Exception as failure:  # peft or the architecture's own code may raise anything
            said.append(f"{implementation}: {type(failure).__name__}: {failure}")
            continue
        said.append(f"{implementation}: {error:.4%} off the trace")
        if error <= MOST_ERROR:
            kept.append(implementation)
            errors.append(error)
    final = with_programs(recording, kept)
    if kept:
        final["variant"]["error"] = round(max(errors), 6)
    _keep(config["model_type"], model, final, before)
    unreadable = _unreadable(config, model)
    if unreadable:
        _restore(config["model_type"], before)
        return f"nothing: {unreadable}"
    return f"{' and '.join(kept) or 'its tensors only'} ({'; '.join(said)})"


def _unreadable(config: Tree, model: str) -> str:
    """Return why the recording of ``model`` does not serve its own config; empty if it does."""
    if find_recording(config) is None:
        return "its own config does not meet its conditions"
    try:
        read_config(config, model)
    except UserError as error:
        return str(error)
    return ""


def _restore(model_type: str, before: Tree | None) -> None:
    """Make the file of ``model_type`` what it was ``before``."""
    if before is not None:
        write(model_type, before)
        return
    (FOLDER / f"{model_type}.json").unlink()
    contents.cache_clear()
    recorded_types.cache_clear()


def _keep(model_type: str, model: str, recording: Tree, before: Tree | None) -> None:
    """Write the recording of ``model`` into its file, which was ``before``."""
    empty: Tree = {"defaults": {}, "aliases": recording["aliases"], "kinds": [], "around": [], "variants": []}
    file = msgspec.json.decode(msgspec.json.encode(before or empty))
    added = msgspec.json.decode(msgspec.json.encode(recording))
    added["variant"]["model"] = model
    add(file, added)
    write(model_type, file)


def wanted(arguments: Sequence[str]) -> Iterator[tuple[str, Tree]]:
    """Yield name and config of each model to record, as ``arguments`` say: paths of config.json files, or model types.

    Without arguments it is the catalogue, and the defaults of each other model type.
    """
    paths = [each for each in arguments if each.endswith(".json")]
    for path in map(Path, paths if arguments else sorted(map(str, CONFIGS.glob("*/*.json")))):
        config = msgspec.json.decode(path.read_bytes())
        yield f"{path.parent.name}/{path.stem}", config.get("text_config", config)
    for model_type in [each for each in arguments if each not in paths] or (default_types() if not arguments else ()):
        if model_type in MODEL_TYPES or (not arguments and model_type in recorded_types()):
            continue
        try:
            config = default_config(model_type)
        except Exception as error:  # the architecture's own code may raise anything
            print(f"{PREFIX}{model_type}: no config: {type(error).__name__}: {error}"[:300], flush=True)
            continue
        if config["model_type"] == model_type and "text_config" not in config:
            yield f"{PREFIX}{model_type}", config


def check(model_types: Sequence[str]) -> bool:
    """Compare the recordings of ``model_types``, or all, with traces again, and print their errors.

    It returns whether all errors are small enough.
    """
    good = True
    for model_type in model_types or recorded_types():
        for variant in contents(model_type)["variants"]:
            model = variant["model"]
            spec = read_config(few_layers(config_of(model), model), model)
            programs = contents(model_type)["around"][variant["around"]] if variant["around"] is not None else {}
            errors = {implementation: error_of(spec, implementation) for implementation in programs}
            good = good and all(error <= MOST_ERROR for error in errors.values())
            said = ", ".join(f"{implementation} {error:.4%}" for implementation, error in errors.items())
            print(f"{model} ({model_type}): {said or 'its tensors only'}", flush=True)
    return good


@quiet_libraries()
def main(arguments: Sequence[str]) -> bool:
    """Record the models that are `wanted` and that no recording fits; with ``--check``, `check` those that exist."""
    torch.set_num_threads(1)
    if arguments[:1] == ["--check"]:
        return check(arguments[1:])
    FOLDER.mkdir(exist_ok=True)
    for name, config in wanted(arguments):
        if config["model_type"] in MODEL_TYPES or find_recording(config) is not None:
            continue
        try:
            said = record(config, name)
        except Exception as error:  # the architecture's own code may raise anything
            said = f"not recorded: {type(error).__name__}: {error}"
        print(f"{name} ({config['model_type']}): {said}"[:300], flush=True)
    return True


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
