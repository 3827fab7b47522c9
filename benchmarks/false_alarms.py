"""How often the check calls the step times of an unchanged suite worse.

Run with `python -m benchmarks.false_alarms [TRIALS]`. An alarm is a suite in which any recipe is a regression; open,
one without alarm in which any is suspicious or insufficient; clear, one in which all are the same.

The first table holds recorded sessions of this suite against each other, as they are and as if no run had been marked
unstable. The second draws step times from the recorded ones, made as wide as it says, and lets runs differ.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from benchmarks.noise import Noise, Run, measured, read

from lorabench.bench.check.findings import EXIT_CODES
from lorabench.bench.check.matching import Work
from lorabench.bench.check.speed import Pair, judge_speeds
from lorabench.bench.check.thresholds import Thresholds

TRIALS = 300
SEED = 20261122


def outcome(pairs: Mapping[Work, Pair]) -> str:
    """Return what the check makes of a suite's step times: alarm, open or clear."""
    tolerance = Thresholds().speed
    assert tolerance is not None
    codes = {EXIT_CODES[finding.verdict] for finding in judge_speeds(pairs, tolerance)[0].values()}
    return "alarm" if 1 in codes else "open" if 3 in codes else "clear"


def recorded_pairs(
    runs: list[Run], generator: random.Random, *, recipes: int, repeats: int, marks: bool
) -> dict[Work, Pair]:
    """Hold some runs of one session against as many of another."""
    before, after = generator.sample(sorted({run.session for run in runs}), 2)
    names = generator.sample(sorted({run.recipe for run in runs}), recipes)
    pairs: dict[Work, Pair] = {}
    for name in names:
        sides = []
        for session in (before, after):
            there = [run for run in runs if (run.session, run.recipe) == (session, name)]
            drawn = generator.sample(there, repeats)
            sides.append([measured(run.step_seconds[:10], run.unstable if marks else ()) for run in drawn])
        pairs[Work(name, "lorabench")] = (sides[0], sides[1])
    return pairs


def shares(draw: Callable[[], dict[Work, Pair]], trials: int) -> str:
    """Return the shares of the outcomes of ``trials`` suites, as cells of a table."""
    seen = Counter(outcome(draw()) for _ in range(trials))
    return " | ".join(f"{100 * seen[name] / trials:.1f} %" for name in ("alarm", "open", "clear"))


def rows(trials: int) -> Iterator[str]:
    """Yield the lines of both tables."""
    runs = read()
    generator = random.Random(SEED)  # noqa: S311
    noise = Noise(runs, generator)
    yield "| recorded sessions | recipes | runs a side | alarm | open | clear |"
    yield "|---|---|---|---|---|---|"
    for marks in (True, False):
        for recipes, repeats in ((4, 1), (8, 1), (4, 3), (8, 3)):
            said = "as they are" if marks else "marks left out"
            told = shares(
                lambda recipes=recipes, repeats=repeats, marks=marks: recorded_pairs(  # type: ignore[misc]
                    runs, generator, recipes=recipes, repeats=repeats, marks=marks
                ),
                trials,
            )
            yield f"| {said} | {recipes} | {repeats} | {told} |"
    yield ""
    yield "| steps scatter by | runs differ by | recipes | runs a side | alarm | open | clear |"
    yield "|---|---|---|---|---|---|---|"
    for scatter, spread in ((0.01, 0.0), (0.01, 0.005), (0.01, 0.01), (0.01, 0.05), (0.05, 0.05)):
        for recipes, repeats in ((4, 1), (8, 1), (4, 3), (8, 3)):
            told = shares(
                lambda recipes=recipes, repeats=repeats, scatter=scatter, spread=spread: noise.suite(  # type: ignore[misc]
                    recipes, repeats, scatter=scatter, spread=spread
                ),
                trials,
            )
            yield f"| {100 * scatter:g} % | {100 * spread:g} % | {recipes} | {repeats} | {told} |"


if __name__ == "__main__":
    for line in rows(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS):
        print(line, flush=True)
