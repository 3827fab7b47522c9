"""How often the check finds a 5 % slower step, and a 1 % higher peak, with 10 timed steps.

Run with `python -m benchmarks.planted_regressions [TRIALS]`. Found: exactly the slower recipes are called regressions.
Missed: the check passes (exit code 0). Step times are drawn from the recorded ones (`noise.py`), scaled to the scatter
that the table states. Peaks are the recorded ones, which were equal to the byte in every run, varied by up to 0.2 %
either way.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

from benchmarks.noise import RECIPES, Noise, Run, measured, read
from msgspec.structs import replace

from lorabench.bench.check.findings import EXIT_CODES
from lorabench.bench.check.memory import judge_memory
from lorabench.bench.check.speed import judge_speeds
from lorabench.bench.check.thresholds import Thresholds

TRIALS = 300
SEED = 20261122
SLOWER = 0.05
HIGHER = 0.01


def slowdowns(
    noise: Noise, trials: int, runs: tuple[int, int], slower: int, *, scatter: float, spread: float
) -> tuple[float, float]:
    """Return the share of suites in which exactly the slower recipes are found, and the share that passes."""
    tolerance = Thresholds().speed
    assert tolerance is not None
    found = missed = 0
    for _ in range(trials):
        pairs = noise.suite(runs, scatter=scatter, spreads=[spread] * RECIPES, slower=SLOWER, how_many_slower=slower)
        findings, _ = judge_speeds(pairs, tolerance)
        found += {work for work, one in findings.items() if one.verdict == "regression"} == set(list(pairs)[:slower])
        missed += all(EXIT_CODES[one.verdict] == 0 for one in findings.values())
    return found / trials, missed / trials


def rises_found(runs: list[Run], generator: random.Random, trials: int, jitter: float) -> float:
    """Return the share of 1 % higher peaks that are found."""
    found = 0
    for _ in range(trials):
        peak = generator.choice(runs).peak_allocated_bytes
        sides = []
        for higher in (0.0, HIGHER):
            one = measured((1.0,))
            bytes_ = round(peak * (1 + higher) * (1 + generator.uniform(-jitter, jitter)))
            sides.append([replace(one, memory=replace(one.memory, peak_allocated_bytes=bytes_))])
        found += judge_memory(sides[0], sides[1], Thresholds())[0].verdict == "regression"
    return found / trials


def rows(trials: int) -> Iterator[str]:
    """Yield the lines of both tables."""
    recorded = read()
    generator = random.Random(SEED)  # noqa: S311
    noise = Noise(recorded, generator)
    yield "| steps scatter by | runs differ by | slower | runs before and after | found | inconclusive | missed |"
    yield "|---|---|---|---|---|---|---|"
    for scatter, spread in ((0.01, 0.003), (0.01, 0.005), (0.02, 0.01)):
        for runs, slower in (((3, 1), 1), ((3, 3), 1), ((3, 3), RECIPES), ((5, 5), 1)):
            found, missed = slowdowns(noise, trials, runs, slower, scatter=scatter, spread=spread)
            start = f"| {100 * scatter:g} % | {100 * spread:g} % | {slower} of {RECIPES} | {runs[0]} and {runs[1]} |"
            yield start + "".join(f" {100 * share:.1f} % |" for share in (found, 1 - found - missed, missed))
    yield ""
    yield "| peaks off by up to | found |"
    yield "|---|---|"
    for jitter in (0.0, 0.001, 0.002):
        yield f"| {100 * jitter:g} % | {100 * rises_found(recorded, generator, trials, jitter):.1f} % |"


if __name__ == "__main__":
    for line in rows(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS):
        print(line, flush=True)
