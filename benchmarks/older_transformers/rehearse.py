"""Rehearse recipes with older versions of transformers: `tests/estimator/rehearsed_by_older_transformers.json`.

Run with `python benchmarks/older_transformers/rehearse.py FOLDER` in an environment with a CUDA build of torch, such as
`make .venv-cuda/.installed` makes. It installs each version of transformers into FOLDER, and rehearses `train.py` with
it once for each recipe, some 15 s each. All else is that environment's: torch, peft, the null GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe

HERE = Path(__file__).parent
RECORDS = HERE.parents[1] / "tests" / "estimator" / "rehearsed_by_older_transformers.json"
VERSIONS = {
    "4.45": ["transformers==4.45.2", "tokenizers==0.20.3", "huggingface-hub==0.30.2"],
    "4.48": ["transformers==4.48.3", "tokenizers==0.21.1", "huggingface-hub==0.30.2"],
    "4.57": ["transformers==4.57.6", "tokenizers==0.22.1", "huggingface-hub==0.36.0"],
}
"""Series → the packages of its last release, and those that differ from what newer releases need."""
LORA: dict[str, Any] = {"method": "lora", "lora_dropout": 0.0}
QLORA: dict[str, Any] = {"method": "qlora", "lora_dropout": 0.0}
SHORT_MIXTRAL = "mistralai/Mixtral-8x7B-v0.1 of 4 layers"
"""The null GPU spreads tokens evenly over the experts, as the estimate does."""
FULL: dict[str, Any] = {"method": "full", "dtype": "bfloat16", "mixed_precision": "no"}
RECIPES: list[tuple[str, str, dict[str, Any]]] = [
    ("a100-sxm-80gb", "meta-llama/Llama-3.2-1B", {**FULL, "gradient_checkpointing": False}),
    ("a100-sxm-80gb", "meta-llama/Llama-3.2-1B", {**FULL, "batch_size": 2}),
    ("a100-sxm-80gb", "meta-llama/Llama-3.2-1B", {**LORA, "batch_size": 2, "gradient_checkpointing": False}),
    ("a100-sxm-80gb", "meta-llama/Llama-3.2-3B", {**LORA, "batch_size": 4, "use_reentrant": False}),
    ("a100-sxm-80gb", "mistralai/Mistral-7B-v0.1", {**LORA, "batch_size": 2}),
    (
        "rtx-4090",
        "Qwen/Qwen2.5-1.5B",
        {**LORA, "batch_size": 2, "seq_len": 1024, "mixed_precision": "no", "gradient_checkpointing": False},
    ),
    ("a100-sxm-80gb", "meta-llama/Llama-3.2-1B", {**QLORA, "prepare_kbit": False, "gradient_checkpointing": False}),
    ("h200", SHORT_MIXTRAL, {**QLORA, "batch_size": 2}),
    ("h200", SHORT_MIXTRAL, {**QLORA, "prepare_kbit": False, "gradient_checkpointing": False}),
    ("h200", SHORT_MIXTRAL, {**LORA, "target_modules": "attention", "gradient_checkpointing": False}),
    ("t4", "Qwen/Qwen2.5-0.5B", {**LORA, "dtype": "float32", "mixed_precision": "no", "gradient_checkpointing": False}),
]
"""GPU, model and settings."""


def install(folder: Path) -> None:
    """Install each version of transformers into a folder of its own."""
    for series, packages in VERSIONS.items():
        target = folder / series
        if not target.exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
            subprocess.run([*pip, "--no-deps", *packages], check=True)
            subprocess.run([*pip, "requests"], check=True)


def rehearse(folder: Path, series: str, gpu: str, resolved: ResolvedRecipe) -> dict[str, Any]:
    """Return the record of one recipe. Raises SystemExit, with the end of what was printed, if it failed."""
    recipe, config = resolved.recipe.settings(), resolved.spec.config
    program = ["python", str(HERE / "train.py"), json.dumps(recipe), json.dumps(config)]
    command = [sys.executable, "-m", "lorabench", "rehearse", "--gpu", gpu, "--steps", "0", "--", *program]
    variables = os.environ | {"PYTHONPATH": str(folder / series), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    found = re.search(r"FOUND (.*)", done.stdout + done.stderr)
    if found is None:
        raise SystemExit(f"{series} {recipe['model']} failed:\n{done.stderr[-4000:]}\n{done.stdout[-1000:]}")
    return {"gpu": gpu, "model_config": config, "recipe": recipe, **json.loads(found[1])}


def resolve(model: str, series: str, settings: dict[str, Any]) -> ResolvedRecipe:
    """Return a recipe for one series."""
    spec = find_model(model.partition(" of ")[0])
    if model == SHORT_MIXTRAL:
        spec = read_config({**spec.config, "num_hidden_layers": 4}, model)
    return recipe_for(spec, transformers=series, **settings)


def main() -> None:
    """Rehearse all recipes with all versions, but those that have a record, and write the records."""
    if len(sys.argv) != 2:
        raise SystemExit("name one folder: python benchmarks/older_transformers/rehearse.py FOLDER")
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    install(folder)
    known = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else []
    records = []
    for series in VERSIONS:
        for gpu, model, settings in RECIPES:
            resolved = resolve(model, series, settings)
            if resolved.spec.model_type not in resolved.recipe.rules.model_types:
                continue
            same = {"gpu": gpu, "recipe": resolved.recipe.settings()}
            found = next((record for record in known if record.items() >= same.items()), None)
            records.append(found or rehearse(folder, series, gpu, resolved))
            print(f"{series} {gpu} {model}: {records[-1]['requested']:,} B", flush=True)
    RECORDS.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
