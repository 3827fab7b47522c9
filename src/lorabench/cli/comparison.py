"""Several estimates on one screen: the methods side by side, or a row for each combination of listed values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from lorabench.cli.listing import WIDTH, Column, as_csv, as_json, as_markdown, as_table
from lorabench.cli.output import show
from lorabench.cli.speed import in_time, short_speed
from lorabench.estimator.quantities import GIB, in_gib, short_gib

if TYPE_CHECKING:
    from lorabench.estimator.answers.comparison import Comparison
    from lorabench.estimator.answers.estimates import Estimate

SHORT_VERDICTS = {"fits": "yes", "tight": "tight", "does not fit": "no"}
UNITS = {"rank": "rank {}", "batch_size": "batch {}", "seq_len": "length {}"}
"""Setting → how a text names its value."""
TITLES = {"batch_size": "batch", "seq_len": "length"}
"""Setting → the title of its column, if it is not its name."""
FURTHER = "more: --method NAME (one in detail), lorabench plan (what else)"


def show_comparison(comparison: Comparison, format_: str, *, replay: bool) -> None:
    """Print the comparison in one of the formats. ``replay``: whether replays were asked for."""
    if format_ in ("table", "markdown"):
        show(_as_text(comparison, replay, markdown=format_ == "markdown"))
        return
    for line in _left_out(comparison):
        show(f"lorabench: {line}", err=True)
    if format_ == "json":
        show(as_json(comparison.estimates))
    else:
        from lorabench.cli.estimate import csv_row
        from lorabench.estimator.recipes.recipe import with_all_settings

        show(as_csv(with_all_settings(map(csv_row, comparison.estimates))))


def _as_text(comparison: Comparison, replay: bool, *, markdown: bool) -> str:
    from lorabench.cli.estimate import not_taken_into_account, remarks
    from lorabench.cli.first_screen import paragraph
    from lorabench.estimator.answers.comparison import MOST_REPLAYED

    estimates = comparison.estimates
    varied = comparison.varied
    first = _answer(estimates, varied)
    assumptions = dict.fromkeys(chain.from_iterable(one.assumptions for one in estimates))
    warnings = dict.fromkeys(chain.from_iterable(one.warnings for one in estimates))
    more = [*_left_out(comparison), *_changes(estimates)]
    if replay and not comparison.replayed:
        more.append(f"{len(estimates)} rows: memory by ranges; the allocator is replayed for up to {MOST_REPLAYED}")
    about = _in_common(estimates, varied)
    table = as_markdown(_columns(estimates, varied, ranges=True)) if markdown else _as_table(estimates, varied)
    if markdown:
        parts = [f"**{first}**", about, table, *(["\n".join(f"- {line}" for line in more)] if more else [])]
    else:
        parts = [paragraph([first, about]), table, *([paragraph(more)] if more else [])]
    parts += remarks([*assumptions], [*warnings], markdown=markdown)
    parts += not_taken_into_account(estimates[0].imported, markdown=markdown)
    return "\n\n".join(parts if markdown else [*parts, FURTHER])


def _value(estimate: Estimate, name: str) -> Any:
    return estimate.gpu if name == "gpu" else estimate.recipe.setting(name)


def _answer(estimates: Sequence[Estimate], varied: Sequence[str]) -> str:
    """Return the answer in a line: what fits, and with how much room."""
    by_method = set(varied) <= {"method"}
    if estimates[0].gpu is None:
        needs = [_most(one) for one in estimates]
        if not by_method:
            return f"{len(estimates)} estimates: {short_gib(min(needs))} to {short_gib(max(needs))} of a GPU's memory"
        listed = ", ".join(f"{one.recipe.method} {short_gib(most)}" for one, most in zip(estimates, needs, strict=True))
        return f"Needs at most: {listed} of a GPU's memory"
    fitting = [one for one in estimates if one.fits]
    if by_method:
        return _answer_of_methods(estimates, fitting)
    if not fitting:
        return f"None of {len(estimates)} fits"
    said = f"{len(fitting)} of {len(estimates)} fit"
    timed = [(one.throughput.tokens_per_second, one) for one in fitting if one.throughput is not None]
    if not timed:
        return said
    rate, fastest = max(timed, key=lambda pair: pair[0])
    words = [
        UNITS.get(name, "{}").format(_value(fastest, name)) for name in varied if _value(fastest, name) is not None
    ]
    return f"{said}; the fastest: {', '.join(words)}: {rate:,.0f} tokens/s"


def _answer_of_methods(estimates: Sequence[Estimate], fitting: Sequence[Estimate]) -> str:
    gpu = estimates[0].gpu
    rooms: list[str] = []
    for one in sorted(fitting, key=lambda one: -(one.margin_bytes or 0)):
        room = f"with {short_gib(one.margin_bytes)}" if one.margin_bytes else "with nothing"
        rooms.append(f"{one.recipe.method} {room}" if rooms else f"{one.recipe.method} fits {gpu} {room} to spare")
    said = [", ".join(rooms)] if rooms else []
    tight = [one.recipe.method for one in estimates if one.verdict == "tight"]
    if tight:
        said.append(f"{_and(tight)} {'is' if len(tight) == 1 else 'are'} tight{'' if said else f' on {gpu}'}")
    large = [one.recipe.method for one in estimates if one.verdict == "does not fit"]
    if large:
        lacks = f"{_and(large)} {'does' if len(large) == 1 else 'do'} not"
        said.append(lacks if fitting else f"{lacks} fit{'' if said else f' {gpu}'}")
    return "; ".join(said)


def _and(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _in_common(estimates: Sequence[Estimate], varied: Sequence[str]) -> str:
    """Return what all recipes have in common, and what of the GPU is usable."""
    first = estimates[0]
    values = {
        name: next((one.recipe.setting(name) for one in estimates if one.recipe.setting(name) is not None), None)
        for name in UNITS
    }
    if "method" not in varied:
        values = {"method": first.recipe.method, **values}
    words = [
        UNITS.get(name, "{}").format(value)
        for name, value in values.items()
        if name not in varied and value is not None
    ]
    if first.recipe.gradient_checkpointing and "gradient_checkpointing" not in varied:
        words.append("checkpointing")
    said = f"{first.recipe.model.rsplit('/', 1)[-1]}: {', '.join(words)}"
    if "gpu" in varied or first.gpu_usable_bytes is None:
        return said
    return f"{said}; {in_gib(first.gpu_usable_bytes)} usable"


def _most(estimate: Estimate) -> int:
    """Return the upper end of what the recipe needs of a GPU."""
    memory = estimate.memory
    if memory.device_total_range_bytes is not None:
        return memory.device_total_range_bytes[1]
    return memory.device_total_bytes or memory.peak_allocated_bytes


def _as_table(estimates: Sequence[Estimate], varied: Sequence[str]) -> str:
    """Return the table, without the ranges of speeds if it would be too wide with them."""
    tables = (as_table(_columns(estimates, varied, ranges=ranges)) for ranges in (True, False))
    wide = next(tables)
    return wide if max(map(len, wide.splitlines())) <= WIDTH else next(tables)


def _columns(estimates: Sequence[Estimate], varied: Sequence[str], *, ranges: bool) -> list[Column]:
    columns = [
        Column(
            TITLES.get(name, name),
            ["–" if _value(one, name) is None else str(_value(one, name)) for one in estimates],
            right=isinstance(_value(estimates[-1], name), int),
        )
        for name in varied or ["method"]
    ]
    memory = [one.memory for one in estimates]
    if estimates[0].gpu is None:
        return [
            *columns,
            Column("weights", [_weights(one) for one in estimates]),
            Column("allocated", [in_gib(one.peak_allocated_bytes) for one in memory]),
            Column("needs ≤", [short_gib(_most(one)) for one in estimates]),
        ]
    runs = [one.verdict != "does not fit" for one in estimates]
    speeds = [one.throughput if ran else None for one, ran in zip(estimates, runs, strict=True)]
    columns += [
        Column("fits", [SHORT_VERDICTS[one.verdict] if one.verdict else "?" for one in estimates], right=False),
        Column("needs ≤", [short_gib(_most(one)) for one in estimates]),
        Column("spare", [f"{(one.margin_bytes or 0) / GIB:,.1f}" for one in estimates]),
    ]
    if any(one.throughput is not None for one in estimates):
        rates = [short_speed(speed) if speed else "–" for speed in speeds]
        columns.append(Column("tokens/s", rates if ranges else [rate.partition(" ")[0] for rate in rates]))
    if set(varied) <= {"method", "gpu"} and all(one.source == "closed form" for one in estimates):
        columns += [
            Column("batch ≤", [str(one.largest_batch_size or "–") for one in estimates]),
            Column("length ≤", [str(one.longest_seq_len or "–") for one in estimates]),
        ]
    trainings = [speed.training if speed else None for speed in speeds]
    if any(one is not None for one in trainings):
        columns.append(Column("time", [in_time(one.seconds) if one else "–" for one in trainings]))
        costs = [None if one is None or one.cost is None else f"{one.cost:,.2f}" for one in trainings]
        if any(costs):
            columns.append(Column("cost", [cost or "–" for cost in costs]))
    return columns


def _weights(estimate: Estimate) -> str:
    components = estimate.memory.components
    return in_gib(components.get("weights", 0) + components.get("quantized_weights", 0))


def _left_out(comparison: Comparison) -> list[str]:
    """Return a line for each method that cannot train, with the reason."""
    return [
        f"{one.method or 'one'} is left out: {one.why.removeprefix(f'method {one.method}: ')}"
        for one in comparison.left_out
    ]


def _changes(estimates: Sequence[Estimate]) -> list[str]:
    """Return a line for each method that would fit with another setting than the method."""
    from lorabench.cli.first_screen import changes_that_fit

    if len({one.gpu for one in estimates}) > 1 or len({one.recipe.method for one in estimates}) < len(estimates):
        return []
    return [
        f"{one.recipe.method} {line}"
        for one in estimates
        for change, line in zip(one.changes, changes_that_fit(one), strict=False)
        if "method" not in change.settings
    ][:3]
