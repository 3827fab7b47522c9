"""What is measured while a recipe trains."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from lorabench.estimator.memory.breakdown import Breakdown, Bytes
from lorabench.estimator.recipes.parameters import ParameterCounts

Seconds = Annotated[float, Meta(gt=0)]
Tokens = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0)]


class Measurement(Struct, frozen=True, kw_only=True):
    """What was measured while the recipe trained; what a device or a version could not measure is None or empty."""

    parameters: ParameterCounts
    """Counted on the model that was trained."""

    memory: Breakdown
    """Of the steady steps. Components as counted on live tensor storages in an untimed step; on CUDA the peaks are
    the allocator's own."""
    active_peak_bytes: Bytes | None = None
    """Most bytes in blocks that were in use or waited for a stream, as CUDA's allocator counts them."""
    requested_peak_bytes: Bytes | None = None
    """Most bytes that tensors asked CUDA's allocator for, before it rounded them up to blocks."""
    loading_peak_bytes: Bytes | None = None
    """Most bytes allocated while the model was built, before the first step."""
    evaluation_peak_bytes: Bytes | None = None
    """Most bytes allocated while the held-out loss was worked out."""
    nvml_process_peak_bytes: Bytes | None = None
    """Most bytes of the device that the driver counted as this process's, context included."""
    nvml_device_peak_bytes: Bytes | None = None
    """Most bytes of the device that the driver counted as taken, by whomever."""
    rss_peak_bytes: Bytes | None = None
    """Most bytes of host memory that the process had in RAM."""
    timeline: tuple[tuple[float, int], ...] | None = None
    """(seconds since the step began, live bytes) over one step, where it was asked for. On a CPU, which has no
    allocator that tells the time, the number of allocations and frees before stands for the seconds."""

    step_seconds: tuple[Seconds, ...]
    """Each timed step, in order."""
    warmup_step_seconds: tuple[float, ...]
    phase_seconds: dict[str, tuple[float, ...]] = {}
    """Phase (of `PHASES`) → its seconds in each of a few steps of their own."""
    stage_seconds: dict[str, float] = {}
    """Stage of the measurement (text, device, model, held out, warm-up, steps, phases, memory) → its seconds."""
    unstable: tuple[str, ...] = ()
    """Why the step times are not to be trusted, each in one line; empty where they are."""
    sm_clock_mhz: tuple[int, int] | None = None
    """Lowest and highest clock of the GPU's processors seen while steps were timed."""

    tokens_per_step: Annotated[int, Meta(gt=0)]
    unpadded_tokens_per_step: Tokens | None = None
    loss_tokens_per_step: Tokens | None = None
    """Those that the loss has a term for."""
    mfu: Share | None = None
    """Share of the device's peak rate that the model's own arithmetic makes up (model FLOPs utilisation)."""
    hfu: Share | None = None
    """The same with what checkpointing computes twice (hardware FLOPs utilisation)."""
    energy_joules: float | None = None
    """What the device took over the timed steps."""

    losses: tuple[float | None, ...]
    """Loss of every step that learnt: as many as the warm-up and timed steps that were asked for, from the first. None
    stands for a loss that is not finite."""
    gradient_norms: tuple[float | None, ...] = ()
    """Norm of all gradients in each of these steps, before they are clipped; None where it is not finite."""
    held_out_loss_before: float | None = None
    """Loss on text that nothing trains on, without dropout, before the first step."""
    held_out_loss_after: float | None = None
    """The same after the last step that learnt."""
    base_loss: float | None = None
    """The base model's own loss on the first batch, without adapters or dropout (lora, qlora)."""
    adapted_loss: float | None = None
    """The same with adapters that have learnt nothing yet: they must not change it."""

    @property
    def median_step_seconds(self) -> float:
        """The median timed step: robust against single slow steps, unlike the mean."""
        from statistics import median

        return median(self.step_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Throughput at the median timed step."""
        return self.tokens_per_step / self.median_step_seconds

    @property
    def unpadded_tokens_per_second(self) -> float | None:
        """The same without padding."""
        return _rate(self.unpadded_tokens_per_step, self.median_step_seconds)

    @property
    def loss_tokens_per_second(self) -> float | None:
        """The same of those tokens that the loss has a term for."""
        return _rate(self.loss_tokens_per_step, self.median_step_seconds)

    @property
    def step_seconds_interval(self) -> tuple[float, float]:
        """The 95 % interval of the median timed step, by bootstrap."""
        from lorabench.bench.records.step_times import median_interval

        return median_interval(self.step_seconds)

    @property
    def step_seconds_interquartile_range(self) -> float:
        """The span of the middle half of the timed steps."""
        from lorabench.bench.records.step_times import interquartile_range

        return interquartile_range(self.step_seconds)

    @property
    def joules_per_thousand_tokens(self) -> float | None:
        """Energy of the device for a thousand tokens of the timed steps."""
        if self.energy_joules is None:
            return None
        return self.energy_joules / (self.tokens_per_step * len(self.step_seconds)) * 1000


def _rate(tokens: int | None, seconds: float) -> float | None:
    return None if tokens is None else tokens / seconds
