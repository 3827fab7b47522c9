"""A replay of CUDA's caching allocator over a traced training, from the first weight to the last step."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Allocated bytes of the last step, and of the one after it; reserved bytes of all steps."""
    step: list[AllocatorState]
    """After each event of the step with the higher peak: the last one, or the one after it."""


def replay_trace(history: StorageHistory, settings: AllocatorSettings = DEFAULTS) -> TraceReplay:
    """Replay every allocation and free of ``history``, and empty the cache at the same moments.

    If the last step changed the segments, the next one finds other gaps. Then the last step is replayed once more,
    unless steps empty the cache: then the next step may differ from it.
    """
    replay = _Replay(history, CachingAllocator(settings))
    failure = replay.run()
    peaks, allocator = replay.peaks, replay.allocator
    most = max(peaks.values(), default=allocator.peak_allocated)
    return TraceReplay(Replayed(most, allocator.peak_reserved, peaks, failure), replay.highest_step)


class _Replay:
    def __init__(self, history: StorageHistory, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.peaks: dict[str, int] = {}
        self.highest_step: list[AllocatorState] = []
        self._history = history
        self._emptied = frozenset(history.emptied)

    def run(self) -> OutOfMemory | None:
        """Replay the history. If an allocation fails, stop and return it."""
        history, allocations = self._history, self._history.allocations()
        start = 0
        for moment in sorted({*history.ends.values(), history.settled}):
            failure = self._play(start, allocations[start:moment], "loaded")
            if failure is not None:
                return failure
            start = moment
            for phase, end in history.ends.items():
                if end == moment:
                    self.peaks[phase] = self.allocator.allocated
        self._empty(start)
        self.allocator.peak_reserved = self.allocator.reserved
        failure = self._play(start, allocations[start : history.step_start], "adapted")
        if failure is not None:
            return failure
        before = self.allocator.exchanges
        failure = self._step(allocations[history.step_start :])
        changed = self.allocator.exchanges != before
        if failure is None and changed and not history.steps_empty_the_cache and (after := history.step_after()):
            failure = self._step(after)
        return failure

    def _empty(self, moment: int) -> None:
        """Empty the cache if the history does so after ``moment`` events."""
        if moment in self._emptied:
            self.allocator.empty_cache()

    def _step(self, events: Sequence[tuple[int, int]]) -> OutOfMemory | None:
        """Replay ``events``, those of the last step or of the same step again, and record the peak of each phase."""
        start = self._history.step_start
        boundaries = [(begin - start, phase) for begin, phase in self._history.phases]
        states: list[AllocatorState] = []
        failure = self._play(start, events[: boundaries[0][0]], "adapted")  # it frees the gradients of the step before
        for (begin, phase), (end, _) in pairwise(boundaries):
            if failure is None:
                failure = self._play(start + begin, events[begin:end], phase, states)
        self.highest_step = max(self.highest_step, states, key=_peak)
        return failure

    def _play(
        self, start: int, events: Sequence[tuple[int, int]], phase: str, states: list[AllocatorState] | None = None
    ) -> OutOfMemory | None:
        """Replay ``events`` of ``phase``, which follow ``start`` others.

        With ``states``, record the phase's peak, and append each event's state.
        """
        allocator = self.allocator
        if states is not None:
            self._note(phase)
        for moment, (number, size) in enumerate(events, start):
            self._empty(moment)
            if size == 0:
                allocator.free(number)
            elif not allocator.allocate(number, size):
                return OutOfMemory(phase, size)
            if states is not None:
                self._note(phase)
                states.append(AllocatorState(allocator.allocated, allocator.reserved))
        return None

    def _note(self, phase: str) -> None:
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.allocator.allocated)


def _peak(states: Sequence[AllocatorState]) -> int:
    return max((state.allocated for state in states), default=0)
