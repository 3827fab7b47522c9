"""How often the check calls the step times of an unchanged suite worse, with three runs a side. With one it never does.

Run with `python -m benchmarks.false_alarms [TRIALS]`. An alarm is a suite in which any recipe is a regression; open,
one without alarm in which any is suspicious or insufficient; clear, one in which all are the same.

The first rows hold recorded sessions of one suite against each other, as they are and as if no run had been marked
unstable. The others draw step times from the recorded ones, made as wide as the row says, and let runs differ: of all
recipes alike, or of one of them more.
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
"""Of each recipe, a side."""


def outcome(pairs: Mapping[Work, Pair]) -> str:
    """Return what the check makes of a suite's step times: alarm, open or clear."""
    tolerance = Thresholds().speed
    assert tolerance is not None
    codes = {EXIT_CODES[finding.verdict] for finding in judge_speeds(pairs, tolerance)[0].values()}
    return "alarm" if 1 in codes else "open" if 3 in codes else "clear"


def recorded_pairs(recorded: list[Run], generator: random.Random, *, marks: bool) -> dict[Work, Pair]:
    """Hold some runs of one session against as many of another."""
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
    shares = " | ".join(f"{100 * seen[one] / trials:.1f} %" for one in ("alarm", "open", "clear"))
    return f"| {name} | {shares} |"


def rows(trials: int) -> Iterator[str]:
    """Yield the lines of the table."""
    recorded = read()
    generator = random.Random(SEED)  # noqa: S311
    noise = Noise(recorded, generator)
    yield "| step times | alarm | open | clear |"
    yield "|---|---|---|---|"
    for name, marks in (("as recorded", True), ("as recorded, marks left out", False)):
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
        name += "" if of_one == spread else f", of one recipe by {100 * of_one:g} %"
        yield row(name, partial(noise.suite, (RUNS, RUNS), scatter=scatter, spreads=spreads), trials)


if __name__ == "__main__":
    for line in rows(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS):
        print(line, flush=True)
