"""How fast the closed form answers: one recipe at a time, and a million of them in arrays.

Run with `python benchmarks/closed_form.py`. The goals are 200 µs for one recipe once its model and options were asked
about, and about a second for a million on one core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # one core; read when numpy is imported

import numpy as np

from lorabench.estimator.closed_form.forms import compile_form, persistent_of
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.memory_grid import estimate_memory_grid
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

BATCH_SIZES = np.arange(1, 101)
SEQ_LENS = np.arange(1, 101) * 256
RANKS = np.arange(1, 101)
MODELS = {"meta-llama/Llama-3.1-8B": "qlora", "mistralai/Mistral-7B-v0.1": "lora", "Qwen/Qwen2.5-7B": "full"}
"""Name → method."""


def least_seconds(function: Callable[[], object], times: int) -> float:
    """Return the wall-clock seconds of the fastest call. Slower calls waited for the machine."""
    least = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        function()
        least = min(least, time.perf_counter() - start)
    return least


def figures(resolved: ResolvedRecipe) -> list[str]:
    """Return the times of the first estimate, the next, one of a rank not seen before, and the arrays."""

    def first() -> None:
        compile_form.cache_clear()
        estimate_memory(resolved)

    def new_rank() -> None:
        persistent_of.cache_clear()
        estimate_memory(resolved)

    def million() -> None:
        if resolved.recipe.rank is None:
            estimate_memory_grid(resolved, BATCH_SIZES[:, None], np.arange(1, 10_001))
        else:
            batch_sizes, seq_lens, ranks = np.ix_(BATCH_SIZES, SEQ_LENS, RANKS)
            estimate_memory_grid(resolved, batch_sizes, seq_lens, ranks)

    return [
        f"{1e3 * least_seconds(first, 5):.1f} ms",
        f"{1e6 * least_seconds(lambda: estimate_memory(resolved), 500):.0f} µs",
        f"{1e6 * least_seconds(new_rank, 100):.0f} µs",
        f"{least_seconds(million, 3):.2f} s",
    ]


def main() -> None:
    """Measure each model."""
    print(f"{'':32}", *(f"{heading:>10}" for heading in ("first", "next", "new rank", "a million")))
    for name, method in MODELS.items():
        times = figures(ResolvedRecipe(find_model(name), make_recipe(name, method=method)))
        print(f"{name:25}{method:>7}", *(f"{time_:>10}" for time_ in times))


if __name__ == "__main__":
    main()
