"""Step times before and after: is the difference more than chance, and more than what one cares about?

A regression needs all of:

- a *minimum effect*: the median step takes longer by more than the threshold;
- a one-sided *Mann–Whitney test on the raw step times*, which sees the scatter of the steps within the runs;
- where the records tell *what differs from one run to the next* (clocks, memory layout, neighbours), a one-sided
  t-test on the runs' medians. The steps of one run share that, so their scatter cannot tell it. `run_to_run` can:

  - from repeated runs, where any recipe of the suite has them: pooled over the suite, as the machine's; the recipe's
    own counts where it is greater;
  - else, in a suite of `LEAST_RECIPES` or more, from how differently the step times of the other recipes changed: what
    the change to be checked did to all alike does not count, what the machine did to each does;
  - else from nothing: then the scatter of the steps is all there is, and a machine that is not quiet raises alarms.

The larger of the two p-values (both must refuse chance) is corrected over the suite by Holm's method.

That nothing changed needs evidence too: where the interval of the change is wider than the threshold, a change that
matters could hide in it, and the verdict is insufficient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from lorabench.bench.check.findings import Finding, RunToRun, SpreadSource, Verdict, printable
from lorabench.bench.check.matching import Work
from lorabench.bench.check.statistics import (
    SIGNIFICANCE,
    Spread,
    holm,
    least_p,
    mean_interval,
    mean_log,
    p_greater,
    p_mean_greater,
    pooled_spread,
    shift_interval,
)
from lorabench.bench.measuring.measurements import Measurement

LEAST_TIMED_STEPS = 5
"""Fewer on either side say nothing about speed."""
LEAST_RECIPES = 6
"""Fewer recipes of one run each do not tell what differs from run to run: with less than four degrees of freedom, a
t-test over a suite finds next to nothing."""

Pair = tuple[Sequence[Measurement], Sequence[Measurement]]
"""The ok runs of a recipe, before and after."""


class _Times(NamedTuple):
    """Step times of the steady runs, by run."""

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


def judge_speeds(pairs: Mapping[Work, Pair], tolerance: float) -> tuple[dict[Work, Finding], RunToRun | None]:
    """Judge the step times of all recipes together: their tests are one family in each direction.

    Besides, return what is known of the spread between runs; None where no step times could be tested.
    """
    times = {work: _Times(*(_steady(side) for side in pair)) for work, pair in pairs.items()}
    tested = {
        work: seen
        for work, seen in times.items()
        if _unusable(pairs[work], seen) is None and pairs[work][0] != pairs[work][1]
    }
    source, spreads = run_to_run(tested)
    slower, faster = (
        dict(zip(tested, holm([_p_slower(turn(seen), spreads[work]) for work, seen in tested.items()]), strict=True))
        for turn in (_as_it_is, _swapped)
    )
    findings = {}
    for work, pair in pairs.items():
        if pair[0] == pair[1]:
            seen = _Times(*([one.step_seconds for one in side] for side in pair))
            findings[work] = _finding(seen, "same", reason="the same runs on both sides")
        elif work in tested:
            findings[work] = _judge(times[work], tolerance, spreads[work], slower[work], faster[work], len(tested))
        else:
            seen = _Times(*([one.step_seconds for one in side] for side in pair))
            findings[work] = _finding(seen, "insufficient", reason=_unusable(pair, times[work]))
    known = [spread.deviation for spread in spreads.values() if spread is not None]
    if not tested:
        return findings, None
    return findings, RunToRun(source=source, deviation=math.expm1(median(known)) if known else None)


def run_to_run(times: Mapping[Work, _Times]) -> tuple[SpreadSource, dict[Work, Spread | None]]:
    """Return where the spread between runs of each recipe is known from, and the spread of one run's logarithm."""
    pooled = pooled_spread([side for seen in times.values() for side in seen.medians])
    spreads: dict[Work, Spread | None] = dict.fromkeys(times)
    if pooled is not None:
        for work, seen in times.items():
            own = pooled_spread(seen.medians)
            deviation = max(pooled.deviation, own.deviation if own else 0.0)
            spreads[work] = Spread(deviation, pooled.degrees_of_freedom)
        return "repeats", spreads
    if len(times) < LEAST_RECIPES:
        return "unknown", spreads
    for work in times:
        others = [math.exp(seen.shift) for other, seen in times.items() if other != work]
        spread = pooled_spread([others])
        assert spread is not None
        # A shift is the difference of two runs.
        spreads[work] = Spread(spread.deviation / math.sqrt(2), spread.degrees_of_freedom)
    return "suite", spreads


def _steady(measurements: Sequence[Measurement]) -> list[tuple[float, ...]]:
    return [one.step_seconds for one in measurements if not one.unstable]


def _unusable(pair: Pair, times: _Times) -> str | None:
    """Return why the times say nothing, or None where they may be tested."""
    for when, side, steady in zip(("before", "after"), pair, times, strict=True):
        if not steady:
            reasons = dict.fromkeys(printable(reason) for one in side for reason in one.unstable)
            return f"unstable {when}: {'; '.join(reasons)}"
    least = [min(map(len, side)) for side in times]
    if min(least) < LEAST_TIMED_STEPS:
        return f"{least[0]} timed steps before and {least[1]} after: {LEAST_TIMED_STEPS} of each are needed"
    return None


def _as_it_is(times: _Times) -> _Times:
    return times


def _swapped(times: _Times) -> _Times:
    return _Times(times.after, times.before)


def _p_slower(times: _Times, spread: Spread | None) -> float:
    old, new = times.steps
    p_steps = p_greater(new, old)
    if spread is None:
        return p_steps
    return max(p_steps, p_mean_greater(times.shift, times.runs, spread))


def _judge(
    times: _Times, tolerance: float, spread: Spread | None, p_slower: float, p_faster: float, family: int
) -> Finding:
    old, new = times.typical
    interval = shift_interval(*times.steps)
    if spread is not None and max(times.runs) > 1:
        between = mean_interval(times.shift, times.runs, spread)
        interval = min(interval[0], between[0]), max(interval[1], between[1])
    p_value = p_slower if times.shift >= 0 else p_faster
    slower, faster = new - old > tolerance * old, old - new > tolerance * new
    verdict: Verdict = "same"
    reason = None
    if slower or faster:
        if p_value <= SIGNIFICANCE:
            verdict = "regression" if slower else "improvement"
        elif least_p(*map(len, times.steps)) * family > SIGNIFICANCE:
            verdict = "insufficient"
            reason = f"too few timed steps to tell a change in a suite of {family} from chance: run more"
        else:
            verdict = "suspicious"
            runs = " and of the runs" if spread is not None else ""
            reason = f"within the scatter of the steps{runs} (p = {p_value:.2g}): run more, or on a quieter machine"
    elif (interval[1] - interval[0]) / 2 > math.log1p(tolerance):
        verdict = "insufficient"
        reason = f"the scatter hides changes of {100 * tolerance:.3g}%: run more, or on a quieter machine"
    return _finding(times, verdict, interval=interval, p_value=p_value, reason=reason)


def _finding(
    times: _Times,
    verdict: Verdict,
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
