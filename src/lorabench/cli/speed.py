"""Training speed: its options, and how it is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorabench.cli.parameters import Count, NamedPath
from lorabench.estimator.errors import UserError

if TYPE_CHECKING:
    from lorabench.estimator.devices.device import Device
    from lorabench.estimator.speed.calibrations import Calibration
    from lorabench.estimator.speed.throughput import Throughput, Training

F = TypeVar("F", bound=Callable[..., Any])

LEAST_SHARE = 0.005
"""Groups of operations with a smaller share of the step time are not listed."""


calibration_option = click.option(
    "--calibration",
    "calibration_file",
    type=NamedPath(),
    help="File from `lorabench calibrate`. [found by the GPU's name]",
)
OPTIONS: list[Callable[[F], F]] = [
    click.option("--tokens", type=Count(), help="Predict the time for this many tokens, such as 50M."),
    click.option("--price-per-hour", type=float, help="Predict their cost at this GPU price."),
    calibration_option,
]


def speed_options(command: F) -> F:
    """Add the speed options to ``command``: ``tokens``, ``price_per_hour``, ``calibration_file``."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def refuse_speed_without_rates(
    device: Device | None, tokens: int | None, price_per_hour: float | None, calibration_file: Path | None
) -> None:
    """Refuse speed options that cannot be answered.

    Raises:
        UserError: a price without tokens; tokens or a calibration without a GPU; tokens for a GPU of unknown speed.
    """
    if price_per_hour is not None and tokens is None:
        raise UserError("--price-per-hour needs a number of tokens: add --tokens, such as --tokens 50M")
    asked = "--tokens" if tokens is not None else "--calibration" if calibration_file is not None else None
    if asked and device is None:
        raise UserError(f"{asked} needs a GPU: add --gpu NAME (`lorabench gpus` lists names)")
    if tokens is not None and device and device.bandwidth_bytes_per_second is None and calibration_file is None:
        raise UserError(
            f"--tokens needs a GPU of known speed, but {device.name} is only a memory size: name the GPU, "
            "or pass --calibration FILE"
        )


def calibration_for(device: Device, file: Path | None) -> Calibration | None:
    """Return the calibration in ``file``, or else the one found by the device's name, if any.

    Raises:
        UserError: the file is not a calibration, or it is of another device.
    """
    from lorabench.estimator.speed.calibrations import file_name, find_calibration, read_calibration

    if file is None:
        return find_calibration(device.name)
    calibration = read_calibration(file)
    if device.bandwidth_bytes_per_second is not None and file_name(calibration.device) != file_name(device.name):
        raise UserError(
            f"calibration {file} was measured on {calibration.device}, not on {device.name}: "
            f"leave --calibration out, or run `lorabench calibrate` on that GPU"
        )
    return calibration


def tokens_per_second(speed: Throughput) -> str:
    """Return the speed and its range."""
    return f"{_number(speed.tokens_per_second)} tokens/s ({_between(speed.tokens_per_second_range)})"


def short_speed(speed: Throughput | None) -> str:
    """Return a rate and its range with two significant figures: 3.3k (2.4–4.0)."""
    if speed is None:
        return "?"
    unit, sign = (1000, "k") if speed.tokens_per_second >= 1000 else (1, "")
    likely, least, most = (
        _two_figures(rate / unit) for rate in (speed.tokens_per_second, *speed.tokens_per_second_range)
    )
    return f"{likely}{sign} ({least}–{most})"


def _two_figures(number: float) -> str:
    rounded = float(f"{number:.2g}")
    return f"{rounded:.{0 if rounded >= 10 else 1 if rounded >= 1 else 2}f}"


def speed_lines(speed: Throughput) -> list[str]:
    """Return what follows from the speed: the time of a step and, if it was asked for, of a training."""
    source = "calibrated" if speed.rates == "calibrated" else "speed from the datasheet (not calibrated)"
    lines = [
        f"step: {in_time(speed.step_seconds)} ({' to '.join(map(in_time, speed.step_seconds_range))}), {source}",
    ]
    used = []
    if speed.mfu is not None and speed.mfu_range is not None and speed.hfu is not None:
        low, high = speed.mfu_range
        used.append(f"MFU {speed.mfu:.0%} ({low:.0%} to {high:.0%}), HFU {speed.hfu:.0%}")
    if speed.watts_range is not None:
        used.append(f"{_between(speed.watts_range)} W")
    lines += ["; ".join(used)] if used else []
    if speed.training is not None:
        lines.append(_training(speed.training))
    return lines


def shares_of_time(speed: Throughput) -> str:
    """Return the groups of operations that take the most time, largest first."""
    shares = {group: seconds / speed.step_seconds for group, seconds in speed.groups_seconds.items()}
    ordered = sorted((share, group) for group, share in shares.items() if share >= LEAST_SHARE)
    return "share of time: " + ", ".join(f"{group} {share:.0%}" for share, group in reversed(ordered))


def _training(training: Training) -> str:
    line = f"{training.tokens:,} tokens: {in_time(training.seconds)} "
    line += f"({' to '.join(map(in_time, training.seconds_range))})"
    if training.cost is not None and training.cost_range is not None:
        low, high = training.cost_range
        line += f", cost {training.cost:,.2f} ({low:,.2f} to {high:,.2f})"
    if training.kilowatt_hours_range is not None:
        low, high = training.kilowatt_hours_range
        line += f", {low:,.2g} to {high:,.2g} kWh"
    return line


def in_time(seconds: float) -> str:
    """Return seconds in a readable unit: 12.3 ms, 4.56 s, 7.8 min, 9.1 h, 12 days."""
    for unit, length, until in (("ms", 1e-3, 1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{_number(seconds / length)} {unit}"
    return f"{_number(seconds / 86_400)} days"


def _between(range_: tuple[float, float]) -> str:
    return " to ".join(map(_number, range_))


def _number(value: float) -> str:
    """Return three significant figures, or all digits before the decimal point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
