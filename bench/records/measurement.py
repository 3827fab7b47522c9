"""The measurement of a recipe."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from lorabench.estimator.memory.breakdown import Breakdown, Bytes
from lorabench.estimator.recipes.parameters import ParameterCounts

Seconds = Annotated[float, Meta(ge=1e-9, le=1e9)]
"""A clock's resolution, and decades: ratios and logarithms of such times stay within floats."""
Duration = Annotated[float, Meta(ge=0, le=1e9)]
Tokens = Annotated[int, Meta(ge=0, le=2**53)]
Share = Annotated[float, Meta(ge=0, le=1e9)]
Float32 = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]
"""A loss or a norm, which torch computes in float32."""


class Measurement(Struct, frozen=True, kw_only=True):
    """The measurement of a recipe. What a device or a version could not measure is None or empty."""

    parameters: ParameterCounts
    """Counted on the trained model."""

    memory: Breakdown
    """Memory of the timed steps. Components are counted from live storages in an untimed step. On CUDA the peaks are
    the allocator's own."""
    active_peak_bytes: Bytes | None = None
    """Peak bytes in blocks that were in use or waited for a stream, from CUDA's allocator."""
    requested_peak_bytes: Bytes | None = None
    """Peak bytes that tensors requested from CUDA's allocator, before rounding to blocks."""
    loading_peak_bytes: Bytes | None = None
    """Peak allocated bytes while the model was built, before the first step."""
    evaluation_peak_bytes: Bytes | None = None
    """Peak allocated bytes while the held-out loss was computed."""
    nvml_process_peak_bytes: Bytes | None = None
    """Peak bytes of this process on the device, from the driver, with the CUDA context."""
    nvml_device_peak_bytes: Bytes | None = None
    """Peak used bytes of the device, from the driver, of all processes."""
    rss_peak_bytes: Bytes | None = None
    """Peak resident host memory of the process."""
    timeline: tuple[tuple[Duration, Bytes], ...] | None = None
    """(seconds since the start of the step, live bytes) over one step; None if not requested. On a CPU the first value
    is the number of allocations and frees so far, because no allocator records the time."""

    step_seconds: tuple[Seconds, ...]
    """Seconds of each timed step, in order."""
    warmup_step_seconds: tuple[Duration, ...]
    phase_seconds: dict[str, tuple[Duration, ...]] = {}
    """Phase (of `PHASES`) → seconds in each of a few extra steps."""
    stage_seconds: dict[str, Duration] = {}
    """Stage of the measurement (text, device, model, held out, warm-up, steps, phases, memory) → seconds."""
    unstable: tuple[str, ...] = ()
    """Why the step times are unreliable, one line each; empty if they are not."""
    sm_clock_mhz: tuple[Tokens, Tokens] | None = None
    """Lowest and highest SM clock during the timed steps."""

    tokens_per_step: Annotated[int, Meta(ge=1, le=2**53)]
    unpadded_tokens_per_step: Tokens | None = None
    loss_tokens_per_step: Tokens | None = None
    """Tokens with a term in the loss."""
    text_tokens: Tokens | None = None
    """Tokens of the dataset if they do not fill one batch, so that a batch repeats them; None if they do."""
    mfu: Share | None = None
    """Model FLOPs utilisation: rate of the model's own FLOPs as a share of the device's peak."""
    hfu: Share | None = None
    """Hardware FLOPs utilisation: the same with recomputation."""
    energy_joules: Annotated[float, Meta(ge=0, le=1e15)] | None = None
    """Energy of the device over the timed steps."""

    losses: tuple[Float32 | None, ...]
    """Loss of every step that updated the weights: the requested warm-up and timed steps. None: not finite."""
    gradient_norms: tuple[Float32 | None, ...] = ()
    """Gradient norm of each of these steps, before clipping. None: not finite."""
    held_out_loss_before: Float32 | None = None
    """Loss on held-out text, without dropout, before the first step."""
    held_out_loss_after: Float32 | None = None
    """The same after the last step that updated the weights."""
    base_loss: Float32 | None = None
    """Loss of the base model on the first batch, without adapters or dropout (lora, qlora)."""
    adapted_loss: Float32 | None = None
    """The same with untrained adapters, which must not change it."""

    @property
    def median_step_seconds(self) -> float:
        """Median of the timed steps: unlike the mean, robust against single slow steps."""
        from statistics import median

        return median(self.step_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second at the median timed step."""
        return self.tokens_per_step / self.median_step_seconds

    @property
    def unpadded_tokens_per_second(self) -> float | None:
        """The same without padding."""
        return _rate(self.unpadded_tokens_per_step, self.median_step_seconds)

    @property
    def loss_tokens_per_second(self) -> float | None:
        """The same for tokens with a term in the loss."""
        return _rate(self.loss_tokens_per_step, self.median_step_seconds)

    @property
    def step_seconds_interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the median timed step."""
        from lorabench.bench.records.step_times import median_interval

        return median_interval(self.step_seconds)

    @property
    def step_seconds_interquartile_range(self) -> float:
        """Interquartile range of the timed steps."""
        from lorabench.bench.records.step_times import interquartile_range

        return interquartile_range(self.step_seconds)

    @property
    def joules_per_thousand_tokens(self) -> float | None:
        """Energy of the device per thousand tokens of the timed steps."""
        if self.energy_joules is None:
            return None
        return self.energy_joules / (self.tokens_per_step * len(self.step_seconds)) * 1000


def _rate(tokens: int | None, seconds: float) -> float | None:
    return None if tokens is None else tokens / seconds
