"""What `lorabench run` shows of a suite as it runs: lines that stay, and on a terminal what is under way."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import click

from lorabench.bench.records.record import RunRecord
from lorabench.bench.running.runner import Progress, Watcher
from lorabench.bench.running.tasks import Lane, Task
from lorabench.cli.speed import in_time
from lorabench.estimator.quantities import in_gib

if TYPE_CHECKING:
    from rich.console import Group

WIDEST_LABEL = 44
"""Longer ones stick out of their column."""


class Lines(Watcher):
    """Prints a line for each recipe that has ended."""

    def __init__(self, verbosity: int) -> None:
        """Print what was found wrong only (−1), a line for each recipe (0), or all that is known of each (1)."""
        self.verbosity = verbosity
        self.total = self.lanes = 0
        self.done = 0
        self.width = 0
        self.measured_seconds: list[float] = []
        """Of the tasks that were run."""

    def prepared(self, tasks: Sequence[Task], lanes: Sequence[Lane], notices: Sequence[str]) -> None:
        """Say what was found wrong in the folder."""
        self.total = len(tasks)
        self.lanes = len(lanes)
        self.width = min(WIDEST_LABEL, max(len(task.label) for task in tasks))
        for notice in notices:
            click.echo(f"lorabench: {notice}", err=True)
        if self.verbosity > 0:
            count = f"{self.lanes} × " if self.lanes > 1 else ""
            self.say(f"on {count}{lanes[0].device.name}")

    def ended(self, progress: Progress) -> None:
        """Print what became of a recipe."""
        self.done = progress.number
        if not progress.resumed and progress.record.outcome != "skipped":
            self.measured_seconds.append(progress.seconds)
        if self.verbosity < 0:
            return
        count = f"[{progress.number:>{len(str(self.total))}}/{self.total}]"
        self.say(f"{count} {progress.task.label:<{self.width}}  {result_line(progress)}")
        if self.verbosity > 0:
            for line in _details(progress.record):
                self.say(f"    {line}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        click.echo(line)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""


class LiveLines(Lines):
    """Shows, below those lines, what runs now, for how long, and how long the rest may take."""

    def __init__(self, verbosity: int) -> None:
        """See `Lines`."""
        from rich.console import Console
        from rich.live import Live

        super().__init__(verbosity)
        self.console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.running: dict[tuple[Any, ...], tuple[str, float]] = {}
        """Key of a task → its label and when it was started."""

    def __enter__(self) -> Self:
        """Begin to draw."""
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave only the lines that stay."""
        self.live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays, above what is drawn."""
        self.console.print(line, soft_wrap=True)

    def started(self, task: Task) -> None:
        """Draw that a recipe runs."""
        self.running[task.key] = task.label, time.monotonic()
        self.waiting()

    def ended(self, progress: Progress) -> None:
        """Draw that it does no more."""
        self.running.pop(progress.task.key, None)
        super().ended(progress)

    def waiting(self) -> None:
        """Draw anew."""
        self.live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        lines = [f"  {label}  {in_time(math.ceil(now - started))}" for label, started in self.running.values()]
        left = seconds_left(self.measured_seconds, self.total - self.done, self.lanes)
        rest = f", about {in_time(math.ceil(left))} left" if left else ""
        return Group(*(Text(line, no_wrap=True) for line in (*lines, f"{self.done} of {self.total} done{rest}")))


def watch(verbosity: int) -> Lines:
    """Return what shows a suite's progress on standard output: drawn on a terminal, and otherwise line by line."""
    if verbosity >= 0 and sys.stdout.isatty():
        return LiveLines(verbosity)
    return Lines(verbosity)


def result_line(progress: Progress) -> str:
    """Return what became of a recipe, as one line."""
    record = progress.record
    notes = ["measured before" if record.outcome == "ok" else "there before"] if progress.resumed else []
    measured = record.measurement
    if measured is None:
        line = f"{record.outcome} {record.message}"
    else:
        peak = in_gib(measured.memory.peak_allocated_bytes)
        first, last = (_loss(loss) for loss in (measured.losses[0], measured.losses[-1]))
        line = f"ok {peak:>8} {measured.tokens_per_second:>5,.0f} tok/s loss {first}→{last}"
        notes += [record.message] if record.message else []
        notes += ["step times unstable"] if measured.unstable else []
    return f"{line}  ({'; '.join(notes)})" if notes else line


def seconds_left(measured: Sequence[float], left: int, lanes: int) -> float | None:
    """Return the seconds that the rest takes if its recipes take what those before took on average."""
    return sum(measured) / len(measured) * left / lanes if measured else None


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.2f}"


def _details(record: RunRecord) -> list[str]:
    said = [f"{setting}={value}" for setting, value in record.recipe.describe().items()]
    lines = [f"{record.file_name}: seed {record.seed}, {record.steps} steps after {record.warmup_steps}"]
    lines += click.wrap_text(" ".join(said), width=76).splitlines()
    if record.measurement is not None:
        lines += [f"unstable: {reason}" for reason in record.measurement.unstable]
    return lines + (record.traceback or "").splitlines()
