"""What measuring costs: what the harness's timed steps take beyond a bare loop of the same operations.

Run with `python benchmarks/harness_overhead.py [PAIRS]`; on a GPU if there is one. What the harness adds to a step
is a fixed number of calls by the host, whatever the model; in the steps of a real model they drown in what steps differ
by. So both loops train a model of a single weight, a few steps at a time by turns, each first in half of the pairs.
Printed is what a step of the harness takes more, as it tells and with all that it does; then the shortest step of the
smallest shipped suite, and what share of it that is. Exit code 1 where that may be 1 % or more, by the 95 % interval.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lorabench.bench.measuring.measure import timed_steps
from lorabench.bench.measuring.meters.cpu import CpuMeter
from lorabench.bench.measuring.meters.cuda import CudaMeter
from lorabench.bench.measuring.meters.meter import Meter
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.records.step_times import median_interval
from lorabench.bench.suites.suite_file import load_suite
from lorabench.bench.training.batches import Batches, make_batches
from lorabench.bench.training.steps import Training
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import MAX_GRAD_NORM, TrainingStep

DEVICE: Any = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 10
"""Of one turn: the fewest that a run times."""
SHORT_STEPS = 50
"""Among which the shortest step of a recipe is looked for."""
MOST_SHARE = 0.01

Turn = Callable[[], tuple[float, float]]
"""Trains `STEPS` steps, and returns the seconds of one: as the loop tells them, and with all that goes with them."""


class OneWeight(nn.Module):
    """A model of next to no work."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Return a loss that the weight has a gradient of."""
        return SimpleNamespace(loss=2 * self.weight)


def bare_loop(model: Any, optimizer: torch.optim.Optimizer, batches: Batches, autocast: Any) -> Callable[[int], None]:
    """Return a function that trains steps as a plain script does, and drops each loss as Trainer does."""

    def train(steps: int) -> None:
        for number in range(steps):
            optimizer.zero_grad(set_to_none=True)
            for batch in batches.of_step(number):
                with autocast():
                    loss = model(**batch).loss
                loss.backward()
                del loss
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()

    return train


def seconds_of(train: Callable[[], Any]) -> float:
    """Return how long ``train`` takes until the device is through with it."""
    synchronize()
    begun = time.perf_counter()
    train()
    synchronize()
    return time.perf_counter() - begun


def synchronize() -> None:
    """Wait until the device is through with its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def turns() -> tuple[Turn, Turn]:
    """Return a turn of the harness and one of a bare loop, both with the same model of one weight."""
    model = OneWeight().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainingStep(model, optimizer, make_recipe("any", mixed_precision="no"))
    batches = Batches([], [torch.ones((1, 1), dtype=torch.int64)], 1, DEVICE)
    training = Training(step, batches, sys.maxsize)
    meter: Meter = CudaMeter() if DEVICE == "cuda" else CpuMeter()
    bare = bare_loop(model, optimizer, batches, step.autocast)
    told: list[float] = []

    def measured() -> None:
        with meter.steady():
            told[:] = timed_steps(training, meter, STEPS)

    def harness_turn() -> tuple[float, float]:
        taken = seconds_of(measured)
        return sum(told) / STEPS, taken / STEPS

    def bare_turn() -> tuple[float, float]:
        taken = seconds_of(lambda: bare(STEPS)) / STEPS
        return taken, taken

    return harness_turn, bare_turn


def shortest_step(resolved: ResolvedRecipe) -> float:
    """Return the seconds of the shortest of some steps of a recipe in a bare loop."""
    recipe = resolved.recipe
    model = build_model(resolved, DEVICE)
    optimizer = make_optimizer(model, recipe)
    batches = make_batches(resolved, Settings(backend=DEVICE, steps=1, warmup_steps=0), 1)
    train = bare_loop(model, optimizer, batches, TrainingStep(model, optimizer, recipe).autocast)
    return min(seconds_of(lambda: train(1)) for _ in range(SHORT_STEPS))


def main(pairs: int) -> int:
    """Print what measuring adds, and return the exit code."""
    loops = turns()
    for loop in loops:
        loop()
    added = []
    for pair in range(pairs):
        order = 1 if pair % 2 else -1
        harness, bare = [loop() for loop in loops[::order]][::order]
        added.append((harness[0] - bare[0], harness[1] - bare[1]))
    most = 0.0
    for what, seconds in zip(("as it tells", "with all that it does"), zip(*added, strict=True), strict=True):
        low, most = median_interval(seconds)
        told = " to ".join(f"{end * 1e6:+.0f}" for end in (low, most))
        print(f"a step {what}: {median(seconds) * 1e6:+.0f} µs ({told}, {pairs} pairs of {STEPS} steps)")
    shortest = min(map(shortest_step, load_suite("smoke").recipes))
    print(f"the shortest step of the smoke suite takes {shortest * 1e3:.1f} ms: at most {most / shortest:.2%} more")
    return 0 if most < MOST_SHARE * shortest else 1


if __name__ == "__main__":
    sys.exit(main(int((sys.argv[1:] or ["1000"])[0])))
