"""A replay of CUDA's caching allocator over a traced training, from the first weight to the last step."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from lorabench.estimator.memory.allocator import CachingAllocator
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.replayed import OutOfMemory, Replayed
from lorabench.estimator.trace.storage_history import StorageHistory


class AllocatorState(NamedTuple):
    """What the allocator counts at one moment, in bytes."""

    allocated: int
    reserved: int | None
    """None on a CPU, which has no such allocator."""


class TraceReplay(NamedTuple):
    """A replay of a traced training."""

    peaks: Replayed
    """Allocated bytes of the last step; reserved bytes since the cache was emptied last, before the first step."""
    last_step: list[AllocatorState]
    """After each event of the last step."""


def replay_trace(
    history: StorageHistory, settings: AllocatorSettings = DEFAULTS, *, capacity: int | None = None
) -> TraceReplay:
    """Replay every allocation and free of ``history``, and empty the cache at the same moments.

    ``capacity``: bytes available on the device; None for no limit.
    """
    replay = _Replay(history, CachingAllocator(settings, capacity=capacity))
    failure = replay.run()
    peaks, allocator = replay.peaks, replay.allocator
    most = max(peaks.values(), default=allocator.peak_allocated)
    return TraceReplay(Replayed(most, allocator.peak_reserved, peaks, failure), replay.last_step)


class _Replay:
    def __init__(self, history: StorageHistory, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.peaks: dict[str, int] = {}
        self.last_step: list[AllocatorState] = []
        self._history = history
        self._allocations = history.allocations()

    def run(self) -> OutOfMemory | None:
        """Replay the history. If an allocation fails, stop and return it."""
        start = 0
        for moment in sorted({*self._history.emptied, *self._history.ends.values()}):
            failure = self._play(start, moment, "loaded")
            if failure is not None:
                return failure
            start = moment
            self._reach(moment)
        boundaries = [*self._history.phases, (len(self._allocations), "")]
        failure = self._play(start, boundaries[0][0], "adapted")
        for (begin, phase), (end, _) in pairwise(boundaries):
            if failure is None and phase:
                self._note(phase)
                failure = self._play(begin, end, phase, in_last_step=True)
        return failure

    def _reach(self, moment: int) -> None:
        """Record phase peaks and empty the cache, if the history does so after ``moment`` events."""
        for phase, end in self._history.ends.items():
            if end == moment:
                self.peaks[phase] = self.allocator.allocated
        if moment in self._history.emptied:
            self.allocator.empty_cache()
            self.allocator.peak_reserved = self.allocator.reserved

    def _play(self, start: int, end: int, phase: str, *, in_last_step: bool = False) -> OutOfMemory | None:
        allocator = self.allocator
        for number, size in self._allocations[start:end]:
            if size == 0:
                allocator.free(number)
            elif not allocator.allocate(number, size):
                return OutOfMemory(phase, size)
            if in_last_step:
                self._note(phase)
                self.last_step.append(AllocatorState(allocator.allocated, allocator.reserved))
        return None

    def _note(self, phase: str) -> None:
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.allocator.allocated)
