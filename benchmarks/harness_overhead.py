"""What measuring costs: the harness's timed steps against a bare loop of the same operations.

Run with `python benchmarks/harness_overhead.py [MODEL] [PAIRS]`; on a GPU where there is one. Both loops train the
same model on the same batches at a learning rate of 0, a few steps at a time by turns, each loop first in half of the
pairs. Printed is how much more a step of the harness takes: of the time that it tells, and of all that it does, by the
clock on a GPU and by processor time on a CPU, which other programs on the machine change little. Exit code 1 where the
second may be 1 % or more, by its 95 % interval.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from lorabench.bench.measuring.measure import timed_steps
from lorabench.bench.measuring.meters.cpu import CpuMeter
from lorabench.bench.measuring.meters.cuda import CudaMeter
from lorabench.bench.measuring.meters.meter import Meter
from lorabench.bench.measuring.step_times import median_interval
from lorabench.bench.running.jobs import Settings
from lorabench.bench.training.batches import Batches, make_batches
from lorabench.bench.training.steps import Training
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.trace.build import build_model
from lorabench.estimator.trace.optimizers import make_optimizer
from lorabench.estimator.trace.step import MAX_GRAD_NORM, TrainingStep

STEPS = 5
"""Of one turn."""
clock = time.perf_counter if torch.cuda.is_available() else time.process_time
MOST_OVERHEAD = 0.01

Turn = Callable[[], tuple[float, float]]
"""Trains `STEPS` steps, and returns the seconds of one: by a watch, and by `clock` with all that goes with it."""


def bare_loop(model: Any, optimizer: torch.optim.Optimizer, batches: Batches, autocast: Any) -> Turn:
    """Return a turn of what a plain script does."""

    def train() -> tuple[float, float]:
        synchronize()
        begun = time.perf_counter(), clock()
        for number in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            for batch in batches.of_step(number):
                with autocast():
                    loss = model(**batch).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
        synchronize()
        return (time.perf_counter() - begun[0]) / STEPS, (clock() - begun[1]) / STEPS

    return train


def harness(training: Training, meter: Meter) -> Turn:
    """Return a turn of the harness, whose watch is its own."""

    def train() -> tuple[float, float]:
        synchronize()
        with meter.steady():
            begun = clock()
            told = timed_steps(training, meter, STEPS)
            synchronize()
            taken = clock() - begun
        return sum(told) / STEPS, taken / STEPS

    return train


def synchronize() -> None:
    """Wait until the device is through with its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(model_name: str, pairs: int) -> int:
    """Print the overhead, and return the exit code."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    spec = find_model(model_name)
    precision = {} if on_gpu else {"dtype": "float32", "mixed_precision": "no"}
    recipe = make_recipe(spec.name, method="lora", seq_len=128, **precision)
    settings = Settings(device="cuda" if on_gpu else "cpu", steps=STEPS, warmup_steps=0)
    batches = make_batches(spec, recipe, settings, STEPS)
    model = build_model(spec, recipe, settings.device)
    optimizer = make_optimizer(model, recipe)
    step = TrainingStep(model, optimizer, recipe)
    loops = [
        harness(Training(step, batches, 0), CudaMeter() if on_gpu else CpuMeter()),
        bare_loop(model, optimizer, batches, step.autocast),
    ]
    for loop in loops:
        loop()
    ratios: list[tuple[float, float]] = []
    for pair in range(pairs):
        first, second = loops[:: 1 if pair % 2 else -1]
        turns = first(), second()
        measured, bare = turns[:: 1 if pair % 2 else -1]
        ratios.append((measured[0] / bare[0], measured[1] / bare[1]))
    highest = 0.0
    for what, seen in zip(("as it tells", "with all that it does"), zip(*ratios, strict=True), strict=True):
        low, highest = median_interval(seen)
        print(f"a step {what}: {median(seen) - 1:+.2%} ({low - 1:+.2%} to {highest - 1:+.2%}, {pairs} pairs)")
    return 0 if highest < 1 + MOST_OVERHEAD else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "lorabench/demo-llama", int((sys.argv[2:] or ["100"])[0])))
