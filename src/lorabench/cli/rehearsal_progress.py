"""The current stage of a rehearsal, as lines on standard error, only on a terminal.

Lines are never overwritten, since the program writes to the same terminal.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from lorabench.bench.null_gpu.ledger import taken_bytes
from lorabench.bench.rehearsing.stages import last_stage
from lorabench.cli.output import show_styled
from lorabench.cli.speed import in_time
from lorabench.estimator.foreign_text import printable
from lorabench.estimator.quantities import in_gib

QUIET_SECONDS = 15.0
"""A long stage is printed again after this time."""
CLEAR_LINE = "\r\x1b[K"
"""Removes a progress bar of the program, which draws it again."""


class StageLines:
    """Prints the stage of a rehearsal when it changes, and again if it lasts."""

    def __init__(self, folder: Path, steps: int | None = None) -> None:
        """Start the clock.

        Args:
            folder: the rehearsal's folder of notes.
            steps: optimizer steps after which it ends; None or 0: unknown.
        """
        self.folder = folder
        self.steps = steps
        self.shown = sys.stderr is not None and sys.stderr.isatty()
        self.begun = self.said_at = time.monotonic()
        self.said = ""

    def __call__(self) -> None:
        """Print the stage if it is new."""
        if not self.shown:
            return
        stage, now = last_stage(self.folder), time.monotonic()
        if stage == self.said and now - self.said_at < QUIET_SECONDS:
            return
        self.said, self.said_at = stage, now
        show_styled(f"{CLEAR_LINE}{printable(self._line(stage, now - self.begun))}", err=True)

    def _line(self, stage: str, seconds: float) -> str:
        if stage.startswith("step ") and self.steps:
            number = int(stage.removeprefix("step "))
            stage = f"{stage} of {self.steps}" if number <= self.steps else "ending"
        taken = taken_bytes(self.folder)
        return f"lorabench: {stage}, {in_gib(taken)} reserved, {in_time(math.ceil(seconds))}"
