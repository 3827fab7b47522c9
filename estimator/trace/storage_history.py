"""Births and deaths of storages, and what follows for a step: components, and the peak of each phase."""

from __future__ import annotations

from collections.abc import Iterator

from lorabench.estimator.memory.breakdown import COMPONENTS, Breakdown


class StorageHistory:
    """The storages of some steps by number, in the order of their births, and all births and deaths."""

    def __init__(self) -> None:
        self.loaded_bytes: int | None = None
        """Bytes of the loaded base model before preparation and adapters, if a caller recorded them."""
        self.adapted_bytes = 0
        self._sizes: list[int] = []
        self._events: list[int] = []
        """Storage number for a birth, its complement for a death."""
        self._components: dict[int, str] = {}
        """Components that are known; the others follow from birth and death."""
        self._recomputed: dict[int, int] = {}
        """Storage made during a layer's recomputation → number of the recomputation."""
        self._recompute_ends: list[int] = []
        """For each recomputation, the event at its end."""
        self.step_start = 0
        """Number of events before the last step."""
        self.phases: list[tuple[int, str]] = []
        """Start of each phase of the last step: an event, and the phase's name."""
        self.ends: dict[str, int] = {}
        """Phase before the first step → number of events at its end."""
        self.emptied: list[int] = []
        """Number of events at each time when the allocator's cache was emptied."""
        self.settled = 0
        """Number of events when the first step was about to begin."""

    def end_phase(self, phase: str) -> None:
        """Note that ``phase``, one of those before the first step, ends."""
        self.ends[phase] = len(self._events)

    def empty_cache(self) -> None:
        """Note that the cache is emptied: the allocator releases what is wholly free."""
        self.emptied.append(len(self._events))

    def settle(self) -> None:
        """Note that the cache is emptied before the first step, and peaks of reserved memory count from here on."""
        self.empty_cache()
        self.settled = len(self._events)

    @property
    def steps_empty_the_cache(self) -> bool:
        """Whether the cache was emptied since the first step began."""
        return max(self.emptied, default=0) > self.settled

    # Results.

    def breakdown(self) -> Breakdown:
        """Return the bytes of tensors by component at the last step's peak, and the peak of each of its phases."""
        components = self._attribute()
        live_bytes = dict.fromkeys(COMPONENTS, 0)
        live = peak = 0
        at_peak, peak_phase = dict(live_bytes), "adapted"
        phase_peaks = {} if self.loaded_bytes is None else {"loaded": self.loaded_bytes}
        phase_peaks["adapted"] = self.adapted_bytes
        phases = iter([*self.phases, (len(self._events) + 1, "")])
        phase, (next_start, next_phase) = "", next(phases)
        for index, event in enumerate([*self._events, None]):
            while index >= next_start:
                phase = next_phase
                next_start, next_phase = next(phases)
                if phase:
                    phase_peaks[phase] = max(phase_peaks.get(phase, 0), live)
            if event is None:
                break
            sid = event if event >= 0 else ~event
            size = self._sizes[sid] if event >= 0 else -self._sizes[sid]
            live += size
            live_bytes[components[sid]] += size
            if phase and live > phase_peaks[phase]:
                phase_peaks[phase] = live
            if phase and live > peak:
                peak, peak_phase, at_peak = live, phase, dict(live_bytes)
        return Breakdown(components=at_peak, phase=peak_phase, peak_allocated_bytes=peak, phase_peaks_bytes=phase_peaks)

    def allocations(self) -> list[tuple[int, int]]:
        """Return every allocation and free since the beginning: the storage's number, and its bytes or 0 for a free."""
        return [(event, self._sizes[event]) if event >= 0 else (~event, 0) for event in self._events]

    def step_after(self) -> list[tuple[int, int]]:
        """Return the allocations and frees of the step after the last, if it equals the last; else an empty list.

        It frees what the last step left, such as gradients, where the last step freed what the step before left. Both
        are matched in the order of their births. A step that leaves other tensors than it frees is not the same again.
        """
        events = self._events[self.step_start : self.phases[-1][0]]
        made = [event for event in events if event >= 0]
        freed = {~event for event in events if event < 0}
        found, left = sorted(freed.difference(made)), [each for each in made if each not in freed]
        if [self._sizes[each] for each in found] != [self._sizes[each] for each in left]:
            return []
        numbers = dict(zip(found, left, strict=True)) | {each: len(self._sizes) + each for each in made}
        return [(numbers[event], self._sizes[event]) if event >= 0 else (numbers[~event], 0) for event in events]

    def live_bytes_of_step(self) -> Iterator[tuple[int, str, int]]:
        """Yield the number and phase of each event of the last step, and the live bytes after it."""
        live = 0
        phases = iter([*self.phases, (len(self._events), "")])
        phase, (next_start, next_phase) = "", next(phases)
        for index, event in enumerate(self._events):
            while index >= next_start:
                phase = next_phase
                next_start, next_phase = next(phases, (len(self._events) + 1, ""))
            live += self._sizes[event] if event >= 0 else -self._sizes[~event]
            if phase:
                yield index, phase, live

    def peak_event(self) -> int:
        """Return the number of the event that completes the last step's peak: an allocation."""
        points = self.live_bytes_of_step()
        return max(points, key=lambda point: point[2])[0]

    def storage_of(self, event: int) -> int:
        """Return the number of the storage that ``event`` made or freed."""
        made = self._events[event]
        return made if made >= 0 else ~made

    def alive_after(self, event: int) -> Iterator[tuple[int, str, int]]:
        """Yield number, component and bytes of each storage that is alive after ``event``."""
        components = self._attribute()
        freed = {~made for made in self._events[: event + 1] if made < 0}
        for made in self._events[: event + 1]:
            if made >= 0 and made not in freed:
                yield made, components[made], self._sizes[made]

    # Attributing bytes.

    def _attribute(self) -> list[str]:
        """Return the component of every storage. One that outlives its forward pass or recomputation was saved by
        it."""
        died = {~event: index for index, event in enumerate(self._events) if event < 0}
        never = len(self._events)
        components = ["buffers"] * len(self._sizes)
        phases = iter(self.phases)
        phase, end = "", 0
        upcoming = next(phases, None)
        for index, event in enumerate(self._events):
            while upcoming is not None and index >= upcoming[0]:
                phase = upcoming[1]
                upcoming = next(phases, None)
                end = upcoming[0] if upcoming is not None else never
            if event < 0 or not phase:
                continue
            saved_until = end if phase == "forward" else never + 1
            if event in self._recomputed:
                saved_until = self._recompute_ends[self._recomputed[event]]
            outlives = died.get(event, never) >= saved_until
            components[event] = "activations" if outlives else "temporaries"
        for sid, component in self._components.items():
            components[sid] = component
        return components
