"""Record the architectures of configs: ``python -m lorabench.estimator.recording [CONFIG.json…]``.

Without arguments it records each model of the catalogue whose config no recording fits. It writes
``estimator/models/recorded/``. A forward pass is kept only if the closed form says with it what a trace says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import CONFIGS
from lorabench.estimator.models.read_config import MODEL_TYPES, read_config
from lorabench.estimator.models.recordings import FOLDER, contents, few_layers, find_recording, recorded_types
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.quiet import quiet_libraries
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.recording.architecture import record_architecture
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
MOST_ERROR = 0.005
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
        variant["order"] = {key: numbers[kind] for key, kind in order.items()}
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

    Raises:
        NoClosedForm: the closed form cannot say one of them.
    """
    errors = []
    for options in RECIPES:
        resolved = ResolvedRecipe(
            spec, make_recipe(spec.name, seq_len=LENGTH, attn_implementation=attention, **options)
        )
        try:
            refuse_impossible(resolved)
            traced = trace(resolved, compute_capability="8.0").memory.peak_allocated_bytes
        except UserError:  # transformers and peft cannot run it
            continue
        estimated = replayed_memory(resolved, "cuda", "8.0").peak_allocated_bytes
        errors.append(abs(estimated / traced - 1))
    return max(errors, default=0.0)


def write(model_type: str, file: Tree) -> None:
    """Write a file, one statement a line."""
    text = msgspec.json.encode(file).decode().replace('"],["', '"],\n["').replace("],[[", "],\n[[")
    (FOLDER / f"{model_type}.json").write_text(f"{text}\n")
    contents.cache_clear()
    recorded_types.cache_clear()


def record(config: Tree, model: str) -> str:
    """Record the model of ``config``, and return what was kept."""
    try:
        recording = record_architecture(config)
    except Exception as failure:  # the architecture's own code may raise anything
        recording = with_programs(record_architecture(config, forward=False), ())
        _keep(config["model_type"], model, recording)
        return f"its tensors only: {type(failure).__name__}: {failure}"
    before = contents(config["model_type"]) if config["model_type"] in recorded_types() else None
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
    return f"{' and '.join(kept) or 'its tensors only'} ({'; '.join(said)})"


def _keep(model_type: str, model: str, recording: Tree, before: Tree | None = None) -> None:
    """Write the recording of ``model`` into its file, which was ``before``, or is now."""
    if before is None and model_type in recorded_types():
        before = contents(model_type)
    empty: Tree = {"defaults": {}, "aliases": recording["aliases"], "kinds": [], "around": [], "variants": []}
    file = msgspec.json.decode(msgspec.json.encode(before or empty))
    added = msgspec.json.decode(msgspec.json.encode(recording))
    added["variant"]["model"] = model
    add(file, added)
    write(model_type, file)


@quiet_libraries()
def main(paths: list[str]) -> None:
    """Record the model of each config.json of ``paths``, or of the catalogue, that no recording fits."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for path in map(Path, paths or sorted(map(str, CONFIGS.glob("*/*.json")))):
        config = msgspec.json.decode(path.read_bytes())
        config = config.get("text_config", config)
        if config["model_type"] in MODEL_TYPES or find_recording(config) is not None:
            continue
        try:
            said = record(config, f"{path.parent.name}/{path.stem}")
        except Exception as error:  # the architecture's own code may raise anything
            said = f"not recorded: {type(error).__name__}: {error}"
        print(f"{path.parent.name}/{path.stem} ({config['model_type']}): {said}"[:300], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
