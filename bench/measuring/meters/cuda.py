"""The meter of an NVIDIA GPU: the caching allocator's counters, CUDA events, and samples from the driver."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lorabench.bench.measuring.meters import resident_memory
from lorabench.bench.measuring.meters.allocator_history import live_bytes, recording
from lorabench.bench.measuring.meters.counted_step import components_of_step
from lorabench.bench.measuring.meters.driver import NvmlGpu, Seen, Watch
from lorabench.bench.measuring.meters.meter import Readings, Timeline
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorabench.estimator.training.step import Batch, TrainingStep


class CudaMeter:
    """A `Meter` for this process on its first visible GPU."""

    def __init__(self) -> None:
        import torch

        torch.cuda.init()  # type: ignore[no-untyped-call]
        self.readings = Readings()
        self.device_name: str | None = torch.cuda.get_device_name(0)
        self._marks: list[Any] = []
        self._gpu = NvmlGpu.open(str(torch.cuda.get_device_properties(0).uuid))
        self._reserved_peak = self._allocated_peak = 0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Record the allocator's peak inside the context."""
        import torch

        torch.cuda.reset_peak_memory_stats()
        yield
        self.readings.loading_peak_bytes = torch.cuda.max_memory_allocated()

    def held_bytes(self, model: nn.Module) -> int:
        """Return the allocated bytes."""
        import torch

        gc.collect()
        return torch.cuda.memory_allocated()

    @contextmanager
    def evaluating(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Record the allocator's peak inside the context."""
        import torch

        torch.cuda.reset_peak_memory_stats()
        yield
        self.readings.evaluation_peak_bytes = max(
            torch.cuda.max_memory_allocated(), self.readings.evaluation_peak_bytes or 0
        )

    def settle(self) -> None:
        """Free unused memory on the GPU, including cuBLAS workspaces, which threads allocate again."""
        import torch

        gc.collect()
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()

    def mark(self) -> None:
        """Record the time on the GPU's own timeline, without waiting for the GPU."""
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)

    def laps(self) -> list[float]:
        """Return the seconds between successive marks, and clear them. Waits for the GPU."""
        import torch

        torch.cuda.synchronize()
        marks, self._marks = self._marks, []
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Record the allocator's peaks, the energy and the driver's samples inside the context."""
        import torch

        watch = nullcontext(Seen()) if self._gpu is None else Watch(self._gpu)
        forgotten = resident_memory.forget_peak()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        with watch as seen:
            before = None if self._gpu is None else self._gpu.joules()
            yield
            torch.cuda.synchronize()
            after = None if self._gpu is None else self._gpu.joules()
        readings = self.readings
        self._allocated_peak = torch.cuda.max_memory_allocated()
        self._reserved_peak = torch.cuda.max_memory_reserved()
        counters = torch.cuda.memory_stats()
        readings.active_peak_bytes = counters["active_bytes.all.peak"]
        readings.requested_peak_bytes = counters["requested_bytes.all.peak"]
        readings.rss_peak_bytes = resident_memory.peak_bytes() if forgotten else None
        readings.energy_joules = None if before is None or after is None else after - before
        readings.nvml_process_peak_bytes = seen.process_peak_bytes
        readings.nvml_device_peak_bytes = seen.device_peak_bytes
        readings.sm_clock_mhz = seen.sm_clock_mhz
        readings.disturbances = tuple(seen.disturbances())

    def breakdown(
        self,
        model: nn.Module,
        step: TrainingStep,
        spec: ModelSpec,
        batches: Callable[[], Iterator[Batch]],
        held_bytes: dict[str, int],
    ) -> Breakdown:
        """Return the allocator's peaks over the timed steps, and of each phase of an extra step.

        Components are counted in another extra step; following the storages may keep some alive slightly longer.
        Workspaces are the bytes that cuBLAS frees on request. The rest of the allocator's peak counts as temporaries:
        rounding to 512 B, kernels' workspaces and, if counting needed too much memory, everything that a step
        allocates.
        """
        in_step = peaks_of_extra_step(step, batches, self.settle)
        components = components_of_step(model, step, spec, batches())
        components["workspaces"] = _bytes_given_back_by_cublas()
        return Breakdown(
            components=with_rest(components, self._allocated_peak),
            phase=max(in_step, key=lambda name: in_step[name]),
            peak_allocated_bytes=self._allocated_peak,
            phase_peaks_bytes=held_bytes | in_step,
            peak_reserved_bytes=self._reserved_peak,
            device_total_bytes=self.readings.nvml_process_peak_bytes,
        )

    def timeline(self, step: TrainingStep, batches: Callable[[], Iterator[Batch]]) -> Timeline:
        """Return the allocated bytes after each allocation and free of an extra step."""
        import torch

        with recording(stacks=False) as snapshot:
            before = torch.cuda.memory_allocated()
            step(batches())
            torch.cuda.synchronize()
            events = snapshot()["device_traces"][torch.cuda.current_device()]
        return live_bytes(events, before)


def peaks_of_extra_step(
    step: TrainingStep, batches: Callable[[], Iterator[Batch]], settle: Callable[[], None]
) -> dict[str, int]:
    """Return the peak of each phase of an extra step. If it runs out of memory, run it again after ``settle``.

    The recipe has trained by now. Only the gaps that evaluation and measuring leave in the cache are in the way.
    """
    import torch

    try:
        return phase_peaks(step, batches())
    except torch.OutOfMemoryError:
        pass  # the memory of its frames is free only after this block
    step.optimizer.zero_grad(set_to_none=True)
    settle()
    return phase_peaks(step, batches())


def phase_peaks(step: TrainingStep, batches: Iterator[Batch]) -> dict[str, int]:
    """Train one step and return the allocator's peak in each phase."""
    import torch

    peaks: dict[str, int] = {}
    phase = ""

    def begin(name: str) -> None:
        nonlocal phase
        if phase:
            peaks[phase] = max(peaks.get(phase, 0), torch.cuda.max_memory_allocated())
        phase = name
        torch.cuda.reset_peak_memory_stats()

    before, step.on_phase = step.on_phase, begin
    try:
        step(batches)
        begin("")
    finally:
        step.on_phase = before
    return peaks


def with_rest(components: dict[str, int], total: int) -> dict[str, int]:
    """Return ``components`` with temporaries adjusted so that the sum is ``total`` bytes.

    If the sum exceeds ``total``, temporaries shrink first, then activations, and so on, the least certain first.
    """
    adjusted = dict(components)
    rest = total - sum(components.values())
    for name in ("temporaries", "activations", "logits", "gradients", "buffers"):
        change = max(rest, -adjusted[name])
        adjusted[name] += change
        rest -= change
        if rest == 0:
            break
    return adjusted


def _bytes_given_back_by_cublas() -> int:
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    return before - torch.cuda.memory_allocated()
