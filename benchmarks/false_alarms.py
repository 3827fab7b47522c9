"""How often the check calls the step times of an unchanged suite a regression, with three runs per side.

Run with `python -m benchmarks.false_alarms [TRIALS]`. Alarm: at least one recipe is called a regression. Inconclusive:
no alarm, but at least one recipe is suspicious or insufficient. Clear: all recipes are the same. With one run per side
there is never an alarm.

The first rows compare recorded sessions of one suite with each other: as they are, and as if no run had been marked
unstable. The other rows draw step times from the recorded ones, scaled to the scatter that the row states, and add
run-to-run variance: equal for all recipes, or larger for one of them.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from benchmarks.noise import RECIPES, STEPS, Noise, Run, measured, read

from lorabench.bench.check.findings import EXIT_CODES
from lorabench.bench.check.matching import Work
from lorabench.bench.check.speed import Pair, judge_speeds
from lorabench.bench.check.thresholds import Thresholds

TRIALS = 1000
SEED = 20261122
RUNS = 3
"""Of each recipe, per side."""


def outcome(pairs: Mapping[Work, Pair]) -> str:
    """Return the outcome of the check on a suite's step times: alarm, inconclusive or clear."""
    tolerance = Thresholds().speed
    assert tolerance is not None
    codes = {EXIT_CODES[finding.verdict] for finding in judge_speeds(pairs, tolerance)[0].values()}
    return "alarm" if 1 in codes else "inconclusive" if 3 in codes else "clear"


def recorded_pairs(recorded: list[Run], generator: random.Random, *, marks: bool) -> dict[Work, Pair]:
    """Pair random runs of one session with as many of another."""
    sessions = generator.sample(sorted({run.session for run in recorded}), 2)
    pairs: dict[Work, Pair] = {}
    for name in sorted({run.recipe for run in recorded}):
        sides = []
        for session in sessions:
            drawn = generator.sample([run for run in recorded if (run.session, run.recipe) == (session, name)], RUNS)
            sides.append([measured(run.step_seconds[:STEPS], run.unstable if marks else ()) for run in drawn])
        pairs[Work(name, "lorabench")] = (sides[0], sides[1])
    return pairs


def row(name: str, draw: Callable[[], dict[Work, Pair]], trials: int) -> str:
    """Return the shares of the outcomes of ``trials`` suites, as a row of the table."""
    seen = Counter(outcome(draw()) for _ in range(trials))
    shares = " | ".join(f"{100 * seen[one] / trials:.1f} %" for one in ("alarm", "inconclusive", "clear"))
    return f"| {name} | {shares} |"


def rows(trials: int) -> Iterator[str]:
    """Yield the lines of the table."""
    recorded = read()
    generator = random.Random(SEED)  # noqa: S311
    noise = Noise(recorded, generator)
    yield "| step times | alarm | inconclusive | clear |"
    yield "|---|---|---|---|"
    for name, marks in (("as recorded", True), ("as recorded, ignoring the unstable marks", False)):
        yield row(name, partial(recorded_pairs, recorded, generator, marks=marks), trials)
    for scatter, spread, of_one in (
        (0.01, 0.003, 0.003),
        (0.01, 0.01, 0.01),
        (0.01, 0.05, 0.05),
        (0.05, 0.05, 0.05),
        (0.01, 0.005, 0.015),
    ):
        spreads = [of_one] + [spread] * (RECIPES - 1)
        name = f"steps scatter by {100 * scatter:g} %, runs differ by {100 * spread:g} %"
        name += "" if of_one == spread else f" (one recipe: {100 * of_one:g} %)"
        yield row(name, partial(noise.suite, (RUNS, RUNS), scatter=scatter, spreads=spreads), trials)


if __name__ == "__main__":
    for line in rows(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS):
        print(line, flush=True)
