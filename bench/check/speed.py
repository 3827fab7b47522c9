"""Step times before and after: is the difference more than chance, and more than what one cares about?

A regression needs all of:

- a *minimum effect*: the median step takes longer by more than the threshold;
- a one-sided *Mann–Whitney test on the raw step times*, which sees the scatter of the steps within the runs;
- a one-sided *t-test on the runs' medians*, which sees what one run differs from the next by (clocks, memory layout,
  neighbours). The steps of one run share that, so their scatter cannot tell it: only repeated runs do, of either side.
  It is pooled over the suite; a recipe's own counts where that is greater;
- *repeated runs on both sides*: a single run may be of a recipe that is less steady than most, which the pooled spread
  does not know.

The larger of the two p-values (both must refuse chance) is corrected over the suite by Holm's method.

That nothing changed needs evidence too: where the interval of the change is wider than the threshold, a change that
matters could hide in it. For that, repeats of one side are enough; where no recipe has any, nothing can be concluded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from lorabench.bench.check.findings import Finding, Judgement, departure
from lorabench.bench.check.matching import Work
from lorabench.bench.check.printable import printable
from lorabench.bench.check.statistics import (
    SIGNIFICANCE,
    Spread,
    holm,
    mean_interval,
    mean_log,
    p_greater,
    p_mean_greater,
    pooled_spread,
    shift_interval,
)
from lorabench.bench.records.measurement import Measurement

LEAST_TIMED_STEPS = 5
"""Fewer on either side say nothing about speed."""
NO_REPEATS = "one run a side does not tell what runs differ by: run with --repeats 3"
ONE_RUN = "one run cannot tell a change from unsteadiness: run with --repeats 3"

Pair = tuple[Sequence[Measurement], Sequence[Measurement]]
"""The ok runs of a recipe, before and after."""


class _Times(NamedTuple):
    """Step times, by run."""

    before: list[tuple[float, ...]]
    after: list[tuple[float, ...]]

    @property
    def steps(self) -> tuple[list[float], list[float]]:
        return [time for run in self.before for time in run], [time for run in self.after for time in run]

    @property
    def medians(self) -> tuple[list[float], list[float]]:
        return [median(run) for run in self.before], [median(run) for run in self.after]

    @property
    def runs(self) -> tuple[int, int]:
        return len(self.before), len(self.after)

    @property
    def typical(self) -> tuple[float, float]:
        """Geometric mean of the runs' medians."""
        old, new = self.medians
        return math.exp(mean_log(old)), math.exp(mean_log(new))

    @property
    def shift(self) -> float:
        """Logarithm of after / before."""
        old, new = self.medians
        return mean_log(new) - mean_log(old)

    @property
    def swapped(self) -> _Times:
        return _Times(self.after, self.before)


def judge_speeds(pairs: Mapping[Work, Pair], tolerance: float) -> tuple[dict[Work, Finding], float | None]:
    """Judge the step times of all recipes together: their tests are one family in each direction.

    Besides, return the standard deviation of one run's median step, as a share of it; None where no runs were repeated.
    """
    findings: dict[Work, Finding] = {}
    tested: dict[Work, _Times] = {}
    for work, pair in pairs.items():
        all_runs = _Times(*([one.step_seconds for one in side] for side in pair))
        steady = _Times(*([one.step_seconds for one in side if not one.unstable] for side in pair))
        unusable = _unusable(pair, steady)
        if pair[0] == pair[1]:
            findings[work] = _finding(all_runs, "same", reason="the same runs on both sides")
        elif unusable is not None:
            findings[work] = _finding(all_runs, "insufficient", reason=unusable)
        else:
            tested[work] = steady
    pooled = pooled_spread([side for seen in tested.values() for side in seen.medians])
    if pooled is None:
        for work, seen in tested.items():
            verdict: Judgement = "insufficient" if departure(*seen.typical, tolerance) is None else "suspicious"
            findings[work] = _finding(seen, verdict, reason=NO_REPEATS)
        return findings, None
    spreads = {work: _spread(seen, pooled) for work, seen in tested.items()}
    slower = holm([_p_slower(seen, spreads[work]) for work, seen in tested.items()])
    faster = holm([_p_slower(seen.swapped, spreads[work]) for work, seen in tested.items()])
    for (work, seen), *p_values in zip(tested.items(), slower, faster, strict=True):
        findings[work] = _judge(seen, tolerance, spreads[work], p_values[0] if seen.shift >= 0 else p_values[1])
    return findings, math.expm1(pooled.deviation)


def _unusable(pair: Pair, steady: _Times) -> str | None:
    """Return why the times say nothing, or None where they may be tested."""
    for when, side, runs in zip(("before", "after"), pair, steady, strict=True):
        if not runs:
            reasons = dict.fromkeys(printable(reason) for one in side for reason in one.unstable)
            return f"unstable {when}: {'; '.join(reasons)}"
    least = [min(map(len, side)) for side in steady]
    if min(least) < LEAST_TIMED_STEPS:
        return f"{least[0]} timed steps before and {least[1]} after: {LEAST_TIMED_STEPS} of each are needed"
    return None


def _spread(times: _Times, pooled: Spread) -> Spread:
    own = pooled_spread(times.medians)
    return pooled if own is None else Spread(max(pooled.deviation, own.deviation), pooled.degrees_of_freedom)


def _p_slower(times: _Times, spread: Spread) -> float:
    old, new = times.steps
    return max(p_greater(new, old), p_mean_greater(times.shift, times.runs, spread))


def _judge(times: _Times, tolerance: float, spread: Spread, p_value: float) -> Finding:
    ends = [*shift_interval(*times.steps), *mean_interval(times.shift, times.runs, spread)]
    interval = min(ends), max(ends)
    verdict = departure(*times.typical, tolerance)
    reason = None
    if verdict is None and (interval[1] - interval[0]) / 2 <= math.log1p(tolerance):
        verdict = "same"
    elif verdict is None:
        verdict = "insufficient"
        reason = f"the scatter hides changes of {100 * tolerance:.3g}%: repeat more, or on a quieter machine"
    elif p_value > SIGNIFICANCE:
        verdict = "suspicious"
        reason = f"within the scatter of steps and runs (p = {p_value:.2g}): repeat more"
    elif min(times.runs) == 1:
        verdict = "suspicious"
        reason = ONE_RUN
    return _finding(times, verdict, interval=interval, p_value=p_value, reason=reason)


def _finding(
    times: _Times,
    verdict: Judgement,
    *,
    interval: tuple[float, float] | None = None,
    p_value: float | None = None,
    reason: str | None = None,
) -> Finding:
    old, new = times.typical
    return Finding(
        metric="step_seconds",
        before=old,
        after=new,
        change=(new - old) / old,
        interval=None if interval is None else (math.expm1(interval[0]), math.expm1(interval[1])),
        p_value=p_value,
        verdict=verdict,
        reason=reason,
    )
