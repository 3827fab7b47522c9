"""How much more CUDA's caching allocator takes than tensors do: replays of traced steps of real-size recipes.

Run with `python benchmarks/reserved.py [RECIPES] [SEED]`: a recipe takes some 20 s and needs no GPU. They are drawn
from the catalogue's models and from the options that people vary, without those that no GPU of the catalogue could
hold. Surplus is in percent of the working bytes at the peak, as in `estimator/memory/reserved.py`, which keeps the
worst:

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
from lorabench.estimator.devices.device import all_devices
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.reserved import working_bytes
from lorabench.estimator.models.catalogue import find_model, model_names
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.replay import replay_trace
from lorabench.estimator.trace.storage_history import StorageHistory
from lorabench.estimator.trace.trace import run_on_meta

SMALLEST_MODEL = 300_000_000


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


def surplus(resolved: ResolvedRecipe) -> Surplus:
    """Trace the recipe and replay its allocations."""
    ledger, _, _ = run_on_meta(resolved, "cuda", steps=2, on_progress=lambda what: None)
    memory = ledger.breakdown()
    working = working_bytes(memory.components)
    return Surplus(
        *(
            (taken - memory.peak_allocated_bytes) / working
            for taken in (
                replay_trace(ledger).peaks.reserved,
                smallest_device(ledger, memory.peak_allocated_bytes, settings=DEFAULTS),
                smallest_device(ledger, memory.peak_allocated_bytes, settings=DEFAULTS.expandable()),
            )
        )
    )


def smallest_device(history: StorageHistory, requested: int, *, settings: AllocatorSettings) -> int:
    """Return the least capacity, to a thousandth, with which the allocator serves ``history``."""
    low, high = requested, replay_trace(history, settings).peaks.reserved
    while high - low > high // 1000:
        middle = (low + high) // 2
        tried = replay_trace(history, settings, capacity=middle)
        low, high = (middle, high) if tried.peaks.out_of_memory else (low, middle)
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
        found = surplus(resolved)
        surpluses.append(found)
        print(
            f"{found.kept:8.1%}{found.needed:8.1%}{found.needed_expandable:12.1%}  {resolved.recipe.label()}",
            flush=True,
        )
    columns = [sorted(column) for column in zip(*surpluses, strict=True)]
    for name, at in {"least": 0.0, "median": 0.5, "9 in 10": 0.9, "most": 1.0}.items():
        kept, needed, expandable = (column[round(at * (recipes - 1))] for column in columns)
        print(f"{kept:8.1%}{needed:8.1%}{expandable:12.1%}  {name}")


if __name__ == "__main__":
    main()
