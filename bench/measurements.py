"""What is measured while a recipe trains."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from lorabench.estimator.breakdown import Breakdown, ParameterCounts

Seconds = Annotated[float, Meta(gt=0)]


class Measurement(Struct, frozen=True, kw_only=True):
    """What was measured while the recipe trained; what a device or a version could not measure is None or empty."""

    parameters: ParameterCounts
    """Counted on the model that was trained."""

    memory: Breakdown
    """Of the steady steps. Components as counted on live tensor storages in an untimed step; on CUDA the peaks are
    the allocator's own."""
    active_peak_bytes: int | None = None
    """Most bytes in blocks that were in use or waited for a stream, as CUDA's allocator counts them."""
    loading_peak_bytes: int | None = None
    """Most bytes allocated while the model was built, before the first step."""
    evaluation_peak_bytes: int | None = None
    """Most bytes allocated while the held-out loss was worked out."""
    nvml_process_peak_bytes: int | None = None
    """Most bytes of the device that the driver counted as this process's, context included."""
    nvml_device_peak_bytes: int | None = None
    """Most bytes of the device that the driver counted as taken, by whomever."""
    rss_peak_bytes: int | None = None
    """Most bytes of host memory that the process had in RAM."""
    timeline: tuple[tuple[float, int], ...] | None = None
    """(index of the operation, live bytes after it) over one step, where it was asked for."""

    step_seconds: tuple[Seconds, ...]
    """Each timed step, in order."""
    warmup_step_seconds: tuple[float, ...]
    phase_seconds: dict[str, tuple[float, ...]] = {}
    """Phase (of `PHASES`) → its seconds in each step of a separate pass, whose synchronisation no timed step has."""
    unstable: tuple[str, ...] = ()
    """Why the step times are not to be trusted, each in one line; empty where they are."""

    tokens_per_step: int
    unpadded_tokens_per_step: int | None = None
    loss_tokens_per_step: int | None = None
    """Those that the loss has a term for."""
    mfu: float | None = None
    """Share of the device's peak rate that the model's own arithmetic makes up (model FLOPs utilisation)."""
    hfu: float | None = None
    """The same with what checkpointing computes twice (hardware FLOPs utilisation)."""
    energy_joules: float | None = None
    """What the device took over the timed steps."""

    losses: tuple[float | None, ...]
    """Loss of every step from the first, warm-up included; None stands for a loss that is not finite."""
    gradient_norms: tuple[float | None, ...] = ()
    held_out_loss_before: float | None = None
    held_out_loss_after: float | None = None
    base_loss: float | None = None
    """The base model's own loss on the first batch, without adapters (lora, qlora)."""

    @property
    def median_step_seconds(self) -> float:
        """The median timed step: robust against single slow steps, unlike the mean."""
        from statistics import median

        return median(self.step_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Throughput at the median timed step."""
        return self.tokens_per_step / self.median_step_seconds
