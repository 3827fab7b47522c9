"""Compare step times before and after: is the difference larger than chance, and large enough to matter?

A regression needs all of:

- a *minimum effect*: the median step takes longer by more than the threshold;
- a one-sided *Mann–Whitney test on the raw step times*, which covers the scatter of steps within a run;
- a one-sided *t-test on the runs' medians*, which covers run-to-run variance (clocks, memory layout, neighbours). Steps
  within a run share these, so their scatter says nothing about it; only repeated runs do, on either side. The variance
  is pooled over the suite; a recipe's own variance is used if it is greater;
- *repeated runs on both sides*: a recipe with a single run may be noisier than most, and the pooled variance would not
  show that.

Both tests must be significant: the larger of the two p-values is corrected over the suite by Holm's method.

"Nothing changed" needs evidence too. If the interval of the change is wider than the threshold, it could hide a change
that matters. Repeated runs on one side are enough for that. If no recipe has any, there is no conclusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from lorabench.bench.check.findings import Finding, Judgement, departure
from lorabench.bench.check.matching import Work
from lorabench.bench.check.statistics import (
    SIGNIFICANCE,
    Spread,
    change_of,
    holm,
    mean_interval,
    mean_log,
    p_greater,
    p_mean_greater,
    pooled_spread,
    shift_interval,
)
from lorabench.bench.records.measurement import Measurement
from lorabench.estimator.foreign_text import printable

LEAST_TIMED_STEPS = 5
"""With fewer steps on either side there is no conclusion about speed."""
NO_REPEATS = "one run per side does not show run-to-run variance: run with --repeats 3"
ONE_RUN = "with one run, a change cannot be told from noise: run with --repeats 3"

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

    Also return the standard deviation between runs of a run's median step, as a share; None without repeated runs.
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
    return findings, change_of(pooled.deviation)


def _unusable(pair: Pair, steady: _Times) -> str | None:
    """Return why the times cannot be tested, or None if they can."""
    for when, side, runs in zip(("before", "after"), pair, steady, strict=True):
        if not runs:
            reasons = dict.fromkeys(printable(reason) for one in side for reason in one.unstable)
            return f"unstable {when}: {'; '.join(reasons)}"
    least = [min(map(len, side)) for side in steady]
    if min(least) < LEAST_TIMED_STEPS:
        return f"{least[0]} timed steps before, {least[1]} after: at least {LEAST_TIMED_STEPS} are needed on each side"
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
        reason = f"noise could hide a change of {100 * tolerance:.3g}%: add repeats, or use a quieter machine"
    elif p_value > SIGNIFICANCE:
        verdict = "suspicious"
        reason = f"within the noise of steps and runs (p = {p_value:.2g}): add repeats"
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
        interval=None if interval is None else (change_of(interval[0]), change_of(interval[1])),
        p_value=p_value,
        verdict=verdict,
        reason=reason,
    )
