"""Progress of `lorabench run`: a line per finished recipe and, on a terminal, what runs now."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from lorabench.bench.machine.gpu_probe import Answer, summary
from lorabench.bench.running.runner import Progress, Watcher
from lorabench.bench.running.tasks import Lane, Task
from lorabench.cli.listing import WIDTH, folded
from lorabench.cli.output import show
from lorabench.cli.result_lines import GLUED, details, result_line
from lorabench.cli.speed import in_time
from lorabench.estimator.foreign_text import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Group

WIDEST_RESULT = 40
"""Width of ``ok 100.0 GiB 99,999 tok/s loss 10.00→9.00``. A label that leaves less room overflows its column."""
INDENT = "    "


class Lines(Watcher):
    """Prints a line for each finished recipe."""

    def __init__(self, verbosity: int) -> None:
        """Print only problems (−1), a line per recipe (0), or all details (1)."""
        self.verbosity = verbosity
        self.total = self.lanes = 0
        self.done = 0
        self.label_width = 0
        self.measured_seconds: list[float] = []
        """Durations of the tasks that ran."""
        self.not_measured: list[Progress] = []

    def prepared(self, tasks: Sequence[Task], lanes: Sequence[Lane], notices: Sequence[str]) -> None:
        """Print problems found in the folder, and assumptions about the recipes."""
        self.total = len(tasks)
        self.lanes = len(lanes)
        room = self.columns - len(self._count(0)) - WIDEST_RESULT - 3
        self.label_width = max(0, min(room, max(len(task.label) for task in tasks)))
        for notice in notices:
            show(f"lorabench: {notice}", err=True)
        if self.verbosity >= 0:
            for assumption in dict.fromkeys(said for task in tasks for said in task.resolved.assumptions):
                self._say_wrapped(f"assumed: {assumption}", "")
        if self.verbosity > 0:
            count = f"{self.lanes} × " if self.lanes > 1 else ""
            self.say(f"on {count}{lanes[0].device.name}")

    def probed(self, answers: Sequence[Answer]) -> None:
        """Print what the GPU answered, first and most."""
        if self.verbosity >= 0:
            for line in summary(list(answers)):
                self._say_wrapped(line, "")

    def recorded(self, number: int) -> None:
        """Count a record."""
        self.done = number

    def ended(self, progress: Progress) -> None:
        """Print the result of a recipe."""
        if progress.record.outcome != "ok":
            self.not_measured.append(progress)
        if not progress.resumed and progress.record.outcome != "skipped":
            self.measured_seconds.append(progress.seconds)
        if self.verbosity < 0:
            return
        label = f"{progress.task.label:<{self.label_width}}"
        self._say_wrapped(f"{self._count(progress.number)} {label}  {result_line(progress)}", "")
        if self.verbosity > 0:
            for line in details(progress.record):
                self._say_wrapped(line, INDENT)
            for line in (progress.record.traceback or "").splitlines():
                self.say(INDENT + line)

    @property
    def columns(self) -> int:
        """Maximum width of a line."""
        return WIDTH

    def say(self, line: str) -> None:
        """Print a line."""
        show(line)

    def _count(self, number: int) -> str:
        return f"[{number:>{len(str(self.total))}}/{self.total}]"

    def _say_wrapped(self, text: str, indent: str) -> None:
        for line in folded(text, self.columns, indent=indent, hanging=indent + INDENT):
            self.say(line.replace(GLUED, " "))

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""


class LiveLines(Lines):
    """Also shows, below the finished recipes, what runs now and for how long, and the remaining time."""

    def __init__(self, verbosity: int) -> None:
        """See `Lines`."""
        from rich.console import Console
        from rich.live import Live

        super().__init__(verbosity)
        self.console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.running: dict[tuple[Any, ...], tuple[str, float]] = {}
        """Key of a task → its label and start time."""

    def __enter__(self) -> Self:
        """Begin to draw."""
        self.live.start()
        self.waiting()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what is drawn; printed lines stay."""
        self.live.stop()

    @property
    def columns(self) -> int:
        """Current width of the terminal."""
        return self.console.width

    def say(self, line: str) -> None:
        """Print a line above what is drawn."""
        self.console.print(printable_lines(line), soft_wrap=True)

    def prepared(self, tasks: Sequence[Task], lanes: Sequence[Lane], notices: Sequence[str]) -> None:
        """Print problems found in the folder, above what is drawn."""
        self.live.update("", refresh=True)
        super().prepared(tasks, lanes, notices)
        self.waiting()

    def started(self, task: Task) -> None:
        """Draw that a recipe started."""
        self.running[task.key] = printable(task.label), time.monotonic()
        self.waiting()

    def ended(self, progress: Progress) -> None:
        """Draw that a recipe ended."""
        self.running.pop(progress.task.key, None)
        super().ended(progress)

    def waiting(self) -> None:
        """Redraw."""
        self.live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        lines = [f"  {in_time(math.ceil(now - started)):>7}  {label}" for label, started in self.running.values()]
        left = seconds_left(self.measured_seconds, self.total - self.done, self.lanes)
        rest = f", about {in_time(math.ceil(left))} left" if left else ""
        lines.append(f"{self.done} of {self.total} done{rest}" if self.total else "starting")
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def watch(verbosity: int) -> Lines:
    """Return the progress display: drawn if standard output is a terminal, else line by line."""
    if verbosity >= 0 and sys.stdout.isatty():
        return LiveLines(verbosity)
    return Lines(verbosity)


def seconds_left(measured: Sequence[float], left: int, lanes: int) -> float | None:
    """Return the remaining seconds, if the other recipes take the average time of the finished ones."""
    return sum(measured) / len(measured) * left / lanes if measured else None
