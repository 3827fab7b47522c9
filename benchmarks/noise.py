"""Step times of one unchanged suite in repeated runs, for `false_alarms.py` and `planted_regressions.py`.

To record them, run `noise.yaml` repeatedly, and collect the records with this file:

    for i in 0 1 2; do lorabench run benchmarks/noise.yaml -o noise/$i --repeats 4; done
    python -m benchmarks.noise noise -o benchmarks/noise_cpu.csv
"""

from __future__ import annotations

import argparse
import csv
import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median, stdev
from typing import NamedTuple

from lorabench.bench.check.matching import Work
from lorabench.bench.check.speed import Pair
from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import read_records
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.recipes.parameters import ParameterCounts

RECORDED = Path(__file__).parent / "noise_cpu.csv"
RECIPES = 8
"""Recipes of a suite."""
STEPS = 10
"""Timed steps of each run."""
COLUMNS = ("session", "repeat", "recipe", "unstable", "peak_allocated_bytes", "step_seconds")


class Run(NamedTuple):
    """One run of one recipe."""

    session: int
    """Index of the `lorabench run` that made it."""
    repeat: int
    recipe: str
    unstable: tuple[str, ...]
    """Why it was marked unstable; empty if it was not."""
    peak_allocated_bytes: int
    step_seconds: tuple[float, ...]


def collect(folder: Path) -> list[Run]:
    """Return the runs in the results folders of ``folder``; each of these is a session."""
    return [
        Run(
            session,
            record.repeat,
            record.recipe.label(),
            record.measurement.unstable,
            record.measurement.memory.peak_allocated_bytes,
            record.measurement.step_seconds,
        )
        for session, results in enumerate(sorted(path for path in folder.iterdir() if path.is_dir()))
        for record in read_records(results)
        if record.measurement is not None
    ]


def write(runs: list[Run], path: Path) -> None:
    """Write ``runs`` as CSV; step times are in seconds, to 0.01 ms, with spaces between."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for run in runs:
            times = " ".join(f"{seconds:.5f}" for seconds in run.step_seconds)
            writer.writerow([*run[:3], "; ".join(run.unstable), run.peak_allocated_bytes, times])


def read(path: Path = RECORDED) -> list[Run]:
    """Return the recorded runs."""
    with path.open(newline="") as file:
        return [
            Run(
                int(row["session"]),
                int(row["repeat"]),
                row["recipe"],
                tuple(filter(None, row["unstable"].split("; "))),
                int(row["peak_allocated_bytes"]),
                tuple(map(float, row["step_seconds"].split())),
            )
            for row in csv.DictReader(file)
        ]


def measured(step_seconds: Sequence[float], unstable: tuple[str, ...] = ()) -> Measurement:
    """Return a measurement of which only the step times mean anything."""
    return Measurement(
        parameters=ParameterCounts(total=0, trainable=0, quantized=0, adapter=0, by_part={}),
        memory=Breakdown(components={}, phase="backward", peak_allocated_bytes=0, phase_peaks_bytes={}),
        step_seconds=tuple(step_seconds),
        warmup_step_seconds=(),
        tokens_per_step=1,
        losses=(),
        unstable=unstable,
    )


class Noise:
    """The recorded scatter of step times, made as wide as wanted."""

    def __init__(self, runs: Sequence[Run], generator: random.Random) -> None:
        """Take each run's step times relative to its median, in the logarithm, in units of the run's own deviation."""
        self.generator = generator
        self.residuals = []
        for run in runs:
            logarithms = [math.log(seconds / median(run.step_seconds)) for seconds in run.step_seconds]
            self.residuals += [one / stdev(logarithms) for one in logarithms]

    def runs(self, count: int, *, scatter: float, spread: float, slower: float = 0.0) -> list[Measurement]:
        """Draw runs whose steps scatter by ``scatter`` and whose medians differ by ``spread`` (standard deviations)."""
        made = []
        for _ in range(count):
            level = math.exp(self.generator.gauss(0, spread)) * (1 + slower)
            made.append(
                measured([level * math.exp(scatter * self.generator.choice(self.residuals)) for _ in range(STEPS)])
            )
        return made

    def suite(
        self,
        runs: tuple[int, int],
        *,
        scatter: float,
        spreads: Sequence[float],
        slower: float = 0.0,
        how_many_slower: int = 0,
    ) -> dict[Work, Pair]:
        """Draw a suite, ``runs`` before and after, whose runs differ by ``spreads``; the first recipes got slower."""
        return {
            Work(str(recipe), "lorabench"): (
                self.runs(runs[0], scatter=scatter, spread=spread),
                self.runs(runs[1], scatter=scatter, spread=spread, slower=slower if recipe < how_many_slower else 0.0),
            )
            for recipe, spread in enumerate(spreads)
        }


def main() -> None:
    """Collect results folders into a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds a results folder for each session")
    parser.add_argument("-o", "--output", type=Path, default=RECORDED)
    arguments = parser.parse_args()
    runs = collect(arguments.folder)
    write(runs, arguments.output)
    print(f"{len(runs)} runs in {1 + max(run.session for run in runs)} sessions: {arguments.output}")


if __name__ == "__main__":
    main()
