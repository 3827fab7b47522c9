"""Train one recipe in this process and measure it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lorabench.bench.measuring.meters.allocator_history import record_step
from lorabench.bench.measuring.meters.cpu import CpuMeter
from lorabench.bench.measuring.meters.cuda import CudaMeter
from lorabench.bench.measuring.meters.meter import Meter
from lorabench.bench.measuring.stages import Stages
from lorabench.bench.measuring.utilisation import utilisation
from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import Engine
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.records.step_times import complaints_about, is_warm, steps_missing
from lorabench.bench.training.batches import Batches, make_batches
from lorabench.bench.training.steps import Training, mean_loss
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.quiet import quiet_libraries
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.parameters import count_built
from lorabench.estimator.training.step import TrainingStep

if TYPE_CHECKING:
    from torch import nn

EXTRA_WARM_UP_STEPS = 10
EXTRA_WARM_UP_SECONDS = 5.0
"""Maximum extra warm-up beyond the requested steps, while step times still differ."""
PHASE_STEPS = 3
"""Extra steps whose phases are timed."""


@quiet_libraries()
def measure(resolved: ResolvedRecipe, settings: Settings, snapshot_path: str | None = None) -> Measurement:
    """Build the recipe's model, train it, and return the measurement.

    The stages run one after the other: build; held-out loss and losses of the first batch; warm-up; timed steps with
    nothing between them; phase times; held-out loss; memory by phase and component.

    Args:
        snapshot_path: file for a memory snapshot; None: no snapshot.

    Raises:
        UserError: the recipe cannot be built here, or the weights or the dataset cannot be read.
    """
    import torch

    spec, recipe = resolved.spec, resolved.recipe
    stages = Stages()
    learning_steps = settings.warmup_steps + settings.steps
    batches = make_batches(resolved, settings, learning_steps)
    stages.end("text")
    meter: Meter = CudaMeter() if settings.backend == "cuda" else CpuMeter()
    stages.end("device")
    model, held_bytes = _build(resolved, settings, meter)
    optimizer = make_optimizer(model, recipe)
    step = TrainingStep(model, optimizer, recipe)
    training = Training(step, batches, learning_steps)
    stages.end("model")

    held_out_before = _held_out_loss(meter, step, batches)
    base_loss, adapted_loss = _first_losses(step, batches) if recipe.adapter is not None else (None, None)
    meter.settle()
    stages.end("held out")
    # From here on every engine trains with the same random numbers.
    torch.manual_seed(settings.seed)
    with _steps_of(settings.engine, training, settings.seed) as train_step:
        warmup_seconds = _warm_up(train_step, meter, settings, OPTIMIZERS[recipe.optim].steady_step)
        stages.end("warm-up")
        with meter.steady():
            step_seconds = timed_steps(train_step, meter, settings.steps)
            step_seconds += timed_steps(train_step, meter, steps_missing(step_seconds, settings.least_seconds))
    stages.end("steps")
    phase_seconds = _phase_seconds(training, meter) if settings.timed else {}
    stages.end("phases")
    held_out_after = _held_out_loss(meter, step, batches)
    stages.end("held out")
    memory = meter.breakdown(model, step, spec, lambda: batches.of_step(0), held_bytes)
    timeline = meter.timeline(step, lambda: batches.of_step(0)) if settings.timeline else None
    if snapshot_path is not None:
        record_step(lambda: step(batches.of_step(0)), Path(snapshot_path))
    stages.end("memory")

    tokens, read = batches.tokens_per_step(), meter.readings
    used = utilisation(resolved, meter.device_name, median(step_seconds))
    return Measurement(
        parameters=count_built(model, spec),
        memory=memory,
        active_peak_bytes=read.active_peak_bytes,
        requested_peak_bytes=read.requested_peak_bytes,
        loading_peak_bytes=read.loading_peak_bytes,
        evaluation_peak_bytes=read.evaluation_peak_bytes,
        nvml_process_peak_bytes=read.nvml_process_peak_bytes,
        nvml_device_peak_bytes=read.nvml_device_peak_bytes,
        rss_peak_bytes=read.rss_peak_bytes,
        timeline=timeline,
        step_seconds=tuple(step_seconds),
        warmup_step_seconds=tuple(warmup_seconds),
        phase_seconds=phase_seconds,
        stage_seconds=stages.seconds,
        unstable=(*complaints_about(step_seconds), *read.disturbances),
        sm_clock_mhz=read.sm_clock_mhz,
        tokens_per_step=tokens.all,
        unpadded_tokens_per_step=tokens.unpadded,
        loss_tokens_per_step=tokens.in_loss,
        text_tokens=batches.short_of_tokens,
        mfu=used.mfu,
        hfu=used.hfu,
        energy_joules=read.energy_joules,
        losses=training.losses(),
        gradient_norms=training.gradient_norms(),
        held_out_loss_before=held_out_before,
        held_out_loss_after=held_out_after,
        base_loss=base_loss,
        adapted_loss=adapted_loss,
    )


def _steps_of(engine: Engine, training: Training, seed: int) -> AbstractContextManager[Callable[[], None]]:
    """Return a context with the function that trains the next step, by lorabench's own loop or Trainer's."""
    if engine == "lorabench":
        return nullcontext(training)
    from lorabench.bench.training.trainer_engine import trainer_steps

    return trainer_steps(training, seed)


def timed_steps(train_step: Callable[[], None], meter: Meter, count: int) -> list[float]:
    """Train ``count`` steps and return the seconds of each. On a GPU the host runs ahead, as in normal training."""
    for _ in range(count):
        meter.mark()
        train_step()
        meter.mark()
    return meter.laps()[::2]


def _build(resolved: ResolvedRecipe, settings: Settings, meter: Meter) -> tuple[nn.Module, dict[str, int]]:
    """Return the model, and the allocated bytes after loading the base and after adapting it."""
    held_bytes: dict[str, int] = {}

    def note_loaded(model: nn.Module) -> None:
        held_bytes["loaded"] = meter.held_bytes(model)

    weights = resolved.spec.name if settings.weights == "hub" else settings.weights
    with meter.loading():
        model = build_model(resolved, settings.backend, settings.seed, weights=weights, on_loaded=note_loaded)
    held_bytes["adapted"] = meter.held_bytes(model)
    return model, held_bytes


def _held_out_loss(meter: Meter, step: TrainingStep, batches: Batches) -> float | None:
    """Return the held-out loss; None if the dataset is too short to hold out text."""
    step.optimizer.zero_grad(set_to_none=True)
    with meter.evaluating(step.model, step.optimizer):
        held_out = list(batches.held_out())
        return mean_loss(step, held_out) if held_out else None


def _first_losses(step: TrainingStep, batches: Batches) -> tuple[float | None, float | None]:
    """Return the loss of the first batch without and with the untrained adapters."""
    model: Any = step.model
    losses = []
    for adapters in (model.disable_adapter(), nullcontext()):
        with adapters:
            losses.append(mean_loss(step, [next(batches.of_step(0))]))
    return losses[0], losses[1]


def _warm_up(train_step: Callable[[], None], meter: Meter, settings: Settings, steady_step: int) -> list[float]:
    """Train the warm-up steps, and return their seconds; empty if no warm-up is requested.

    The steps before the optimizer's ``steady_step`` are among them. If the times of steps are used, further steps
    follow until two successive ones take equally long.
    """
    count = max(settings.warmup_steps, steady_step - 1) if settings.warmup_steps else 0
    seconds = timed_steps(train_step, meter, count)
    extra: list[float] = []
    while (
        seconds
        and settings.timed
        and not is_warm(seconds + extra)
        and len(extra) < EXTRA_WARM_UP_STEPS
        and sum(extra) < EXTRA_WARM_UP_SECONDS
    ):
        extra += timed_steps(train_step, meter, 1)
    return seconds + extra


def _phase_seconds(training: Training, meter: Meter) -> dict[str, tuple[float, ...]]:
    """Return the seconds of each phase in each of `PHASE_STEPS` extra steps.

    Time before the first phase (clearing gradients, fetching the first batch) is not counted.
    """
    steps: list[dict[str, float]] = []
    begun: list[str] = []

    def begin(phase: str) -> None:
        begun.append(phase)
        meter.mark()

    training.step.on_phase = begin
    for _ in range(PHASE_STEPS):
        begun.clear()
        training()
        meter.mark()
        step = dict.fromkeys(begun, 0.0)
        for phase, seconds in zip(begun, meter.laps(), strict=True):
            step[phase] += seconds
        steps.append(step)
    training.step.on_phase = lambda phase: None
    return {phase: tuple(step[phase] for step in steps) for phase in steps[0]}
