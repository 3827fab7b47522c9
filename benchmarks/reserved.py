"""How much more CUDA's caching allocator takes than tensors do: replays of the steps of real-size recipes.

Run with `python benchmarks/reserved.py [RECIPES] [SEED]`: a recipe takes some seconds and needs no GPU. They are drawn
from the catalogue's models and from the options that people vary, without those that no GPU of the catalogue could
hold; their kernels are those of one of four GPUs. Surplus is in percent of the working bytes at the peak, as in
`estimator/memory/reserved.py`:

- kept: with unlimited memory;
- needed: on the smallest device on which the steps run, since it gives segments back before it fails;
- needed with expandable segments.
"""

from __future__ import annotations

import random
import sys
import warnings
from typing import NamedTuple

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.devices.device import Device, all_devices, find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.reserved import working_bytes
from lorabench.estimator.models.catalogue import find_model, model_names
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

SMALLEST_MODEL = 300_000_000
GPUS = [find_device(name) for name in ("a100-sxm-80gb", "rtx-4090", "h100-sxm", "t4")]


def draw_recipe(draw: random.Random) -> ResolvedRecipe:
    """Return a model of the catalogue and a recipe for it that some GPU could hold."""
    largest = max(device.memory_bytes for device in all_devices())
    while True:
        spec = find_model(draw.choice(model_names()))
        try:
            recipe = make_recipe(
                spec.name,
                method=draw.choice(["full", "lora", "qlora"]),
                optim=draw.choice(["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit"]),
                batch_size=draw.choice([1, 2, 4, 8, 16]),
                seq_len=draw.choice([512, 1024, 2048, 4096, 8192]),
                gradient_accumulation=draw.choice([1, 1, 4]),
                gradient_checkpointing=draw.random() < 0.7,
                attn_implementation=draw.choice(["sdpa", "sdpa", "sdpa", "flash_attention_2", "eager"]),
                dtype=draw.choice([None, None, "bfloat16"]),
            )
            resolved = ResolvedRecipe(spec, recipe)
            estimate = estimate_recipe(resolved)
        except UserError:
            continue
        if spec.parameters >= SMALLEST_MODEL and estimate.memory.peak_allocated_bytes <= largest:
            return resolved


class Surplus(NamedTuple):
    """Bytes beyond those that tensors request, as shares of the working bytes."""

    kept: float
    needed: float
    needed_expandable: float


def surplus(resolved: ResolvedRecipe, gpu: Device) -> Surplus:
    """Replay the steps of the recipe on ``gpu``."""
    memory = estimate_memory(resolved, "cuda", gpu.compute_capability)
    training = Training(resolved, gpu.compute_capability, gpu.multiprocessors)
    allocated, working = memory.peak_allocated_bytes, working_bytes(memory.components)
    taken = (
        training.replay().reserved,
        smallest_device(training, allocated, DEFAULTS),
        smallest_device(training, allocated, DEFAULTS.expandable()),
    )
    return Surplus(*((bytes_ - allocated) / working for bytes_ in taken))


def smallest_device(training: Training, requested: int, settings: AllocatorSettings) -> int:
    """Return the least capacity, to a thousandth, with which the allocator serves the steps."""
    low, high = requested, training.replay(settings).reserved
    while high - low > high // 1000:
        middle = (low + high) // 2
        failed = training.replay(settings, capacity=middle).out_of_memory is not None
        low, high = (middle, high) if failed else (low, middle)
    return high


def main() -> None:
    """Print the surplus of each recipe, and how it spreads."""
    warnings.simplefilter("ignore")
    recipes = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    draw = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)  # noqa: S311
    print(f"{'kept':>8}{'needed':>8}{'expandable':>12}")
    surpluses = []
    for _ in range(recipes):
        resolved = draw_recipe(draw)
        gpu = draw.choice(GPUS)
        found = surplus(resolved, gpu)
        surpluses.append(found)
        name = f"{resolved.recipe.label()}, {gpu.name}"
        print(f"{found.kept:8.1%}{found.needed:8.1%}{found.needed_expandable:12.1%}  {name}", flush=True)
    columns = [sorted(column) for column in zip(*surpluses, strict=True)]
    for name, at in {"least": 0.0, "median": 0.5, "9 in 10": 0.9, "most": 1.0}.items():
        kept, needed, expandable = (column[round(at * (recipes - 1))] for column in columns)
        print(f"{kept:8.1%}{needed:8.1%}{expandable:12.1%}  {name}")


if __name__ == "__main__":
    main()
