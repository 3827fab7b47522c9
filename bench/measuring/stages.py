"""Duration of each stage of a measurement, from loading the text to counting the memory."""

from __future__ import annotations

import time


class Stages:
    """Seconds by stage; a stage starts when the previous one ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, stage: str) -> None:
        """Record the end of ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
