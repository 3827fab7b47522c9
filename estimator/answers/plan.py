"""What fits a GPU and trains fastest, and which GPU is enough: the searches that `lorabench plan` makes.

Everything that a recipe leaves open is tried: method, precision, optimizer, checkpointing, attention, loss and
micro-batch. Memory and speed are those of `estimates.estimate_recipe`, to the byte and the bit.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from math import log
from typing import Any, NamedTuple

from msgspec import Struct

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.answers.support import unsupported
from lorabench.estimator.answers.verdict import LARGEST_BATCH, Change, hold_against, states_fit
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import Device, all_devices
from lorabench.estimator.errors import UserError
from lorabench.estimator.methods.catalogue import METHODS, Method, Parts
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.optimizers.table import DEFAULT_OPTIMIZER, OPTIMIZERS
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import FUSED_LOSS_MODEL_TYPES, recipe_warnings, refuse_impossible
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.calibrations import Calibration
from lorabench.estimator.speed.flops import step_flops
from lorabench.estimator.speed.throughput import Throughput, estimate_throughput, likely_step_time

TRIED_METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
TRIED_OPTIMIZERS = (DEFAULT_OPTIMIZER, OPTIMIZERS[DEFAULT_OPTIMIZER].smaller or DEFAULT_OPTIMIZER)
"""The fastest, and the leanest of its kind."""
MOST_CHOICES = 8
"""Recipes that are named."""
LARGEST_MICRO_BATCH = 32
"""Micro-batches are tried in powers of two up to this: a larger one fills no GPU better."""
ALIKE = 0.02
"""Speeds that differ by this share are as good as equal."""
LEAST_SAVING = 0.05
"""A slower recipe is named only if it takes less memory, by this share at least."""


class Choice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recipe that fits."""

    recipe: Recipe
    device_total_most_bytes: int
    """The upper end of what it takes, which the verdict goes by."""
    margin_bytes: int
    """What that leaves of what a process can use."""
    throughput: Throughput | None = None
    """None where the GPU's rates are not known."""


class MethodLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one method can do on the GPU, at its leanest: of all that was open, what takes least."""

    method: str
    leanest: Recipe
    fits: bool
    margin_bytes: int
    """Negative where it does not fit."""
    largest_batch_size: int | None = None
    """At the recipe's length; None where not even 1 fits."""
    longest_seq_len: int | None = None
    """At the recipe's micro-batch."""
    changes: tuple[Change, ...] = ()
    """What would make it fit, where it does not."""


class Plan(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to run on one GPU."""

    model: str
    gpu: str
    gpu_memory_bytes: int
    gpu_usable_bytes: int
    seq_len: int
    tried: int
    """Recipes that were held against the GPU."""
    choices: tuple[Choice, ...]
    """The fastest first (without known rates: that which takes least arithmetic); each after it takes less memory than
    all before, or is the fastest of its method. Empty where nothing fits."""
    methods: tuple[MethodLimits, ...]
    assumptions: tuple[str, ...] = ()
    """What was chosen of model, recipes and GPU that nobody asked for and that is not the default, and why."""
    warnings: tuple[str, ...] = ()
    """What is odd about some of these, though they run."""


class EnoughGpu(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A GPU that a recipe fits."""

    gpu: str
    title: str
    gpu_memory_bytes: int
    gpu_usable_bytes: int
    margin_bytes: int
    throughput: Throughput | None = None


class _Fitting(NamedTuple):
    resolved: ResolvedRecipe
    device_total_most_bytes: int
    margin_bytes: int


@contextmanager
def _no_collection() -> Iterator[None]:
    """Leave cycles uncollected for a moment: the search makes objects by the million, and few cycles."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_no_collection()
def make_plan(
    spec: ModelSpec,
    device: Device,
    fixed: dict[str, Any],
    min_batch_tokens: int = 1,
    calibration: Calibration | None = None,
) -> Plan:
    """Return what to run on ``device``: the best recipes of ``spec`` that have the ``fixed`` settings.

    A step trains at least ``min_batch_tokens``: micro-batches are accumulated until it does.

    Raises:
        UserError: settings that contradict each other, or that the model cannot have; more tokens a step than it can.
    """
    tried = 0
    fitting: list[_Fitting] = []
    leanest: dict[str, ResolvedRecipe] = {}
    assumptions: dict[str, None] = {}
    for resolved in _open_recipes(spec, device, fixed):
        assumptions |= dict.fromkeys(resolved.assumptions)
        leanest[resolved.recipe.method] = resolved  # the last of each method takes least
        for sized in _micro_batches(resolved, "batch_size" in fixed, min_batch_tokens):
            tried += 1
            held = _hold(sized, device)
            if held is None:
                break  # no larger micro-batch fits either
            fitting.append(held)
    named = _named(device, calibration, fitting)
    return Plan(
        model=spec.name,
        gpu=device.name,
        gpu_memory_bytes=device.memory_bytes,
        gpu_usable_bytes=device.usable_bytes,
        seq_len=next(iter(leanest.values())).recipe.seq_len,
        tried=tried,
        choices=tuple(
            Choice(
                recipe=one.resolved.recipe,
                device_total_most_bytes=one.device_total_most_bytes,
                margin_bytes=one.margin_bytes,
                throughput=estimate_throughput(one.resolved, device, calibration),
            )
            for one in named
        ),
        methods=tuple(_limits(resolved, device) for resolved in leanest.values()),
        assumptions=(*assumptions, *device.assumptions),
        warnings=tuple(dict.fromkeys(said for one in leanest.values() for said in recipe_warnings(one))),
    )


def enough_gpus(resolved: ResolvedRecipe) -> list[EnoughGpu]:
    """Return the GPUs of the catalogue that the recipe fits: the least memory first, then the lowest board power.

    Raises:
        UserError: a recipe that the model cannot have.
    """
    refuse_impossible(resolved)
    found = []
    for device in sorted(all_devices(), key=lambda device: (device.memory_bytes, device.tdp_watts or 0)):
        if unsupported(resolved.recipe, device):
            continue
        held = _hold(resolved, device)
        if held is not None:
            found.append(
                EnoughGpu(
                    gpu=device.name,
                    title=device.title,
                    gpu_memory_bytes=device.memory_bytes,
                    gpu_usable_bytes=device.usable_bytes,
                    margin_bytes=held.margin_bytes,
                    throughput=estimate_throughput(resolved, device),
                )
            )
    return found


def _open_recipes(spec: ModelSpec, device: Device, fixed: dict[str, Any]) -> Iterator[ResolvedRecipe]:
    """Yield recipes at micro-batch 1 with each combination of what is not fixed, of each method the leanest last.

    Raises:
        UserError: there is none.
    """
    half = "float16" if device.supports_bfloat16 is False else "bfloat16"
    usual = recipe_for(spec, seq_len=fixed.get("seq_len")).recipe
    refusal: UserError | None = None
    lacks: list[str] = []
    found: set[Recipe] = set()
    for method in [fixed["method"]] if "method" in fixed else TRIED_METHODS:
        for precision, attention, loss, optim, checkpointing in product(
            _precisions(METHODS[method], half),
            _attentions(device, usual, spec.config.get("sliding_window")),
            ("standard", "liger") if spec.model_type in FUSED_LOSS_MODEL_TYPES else ("standard",),
            TRIED_OPTIMIZERS,
            (False, True),
        ):
            settings = {
                "method": method,
                **precision,
                "attn_implementation": attention,
                "loss": loss,
                "optim": optim,
                "gradient_checkpointing": checkpointing,
                **fixed,
            }
            try:
                resolved = recipe_for(spec, **settings)
                refuse_impossible(resolved)
            except UserError as error:
                refusal = error
                continue
            if resolved.recipe in found:
                continue
            lack = unsupported(resolved.recipe, device)
            if lack:
                lacks.append(lack)
                continue
            found.add(resolved.recipe)
            yield resolved
    if not found:
        if lacks:
            raise UserError(f"{device.name} has no {lacks[0]}, which was asked for: leave that open")
        assert refusal is not None
        raise refusal


def _precisions(parts: Parts, half: str) -> list[dict[str, Any]]:
    """Return the precisions to try of a method, in ``half``, the leanest last."""
    mixed = "fp16" if half == "float16" else "bf16"
    if parts.adapter is not None:
        unprepared = {} if parts.quantization is None else {"prepare_kbit": False}  # both leaner and faster
        return [{"dtype": half, "mixed_precision": mixed, **unprepared}]
    of_full: list[dict[str, Any]] = [{"dtype": "float32", "mixed_precision": mixed}]
    if half == "bfloat16":  # float16 has not the range to train weights in
        of_full.append({"dtype": "bfloat16", "mixed_precision": "no"})
    return of_full


def _attentions(device: Device, usual: Recipe, window: int | None) -> tuple[str, ...]:
    """Return the attention to try, the leanest last: with flash_attn where it does what the ``usual`` one cannot.

    Where no window is filled, sdpa runs the same kernel as flash_attn; where one is, flash_attn knows the window and
    sdpa needs a mask. What cannot run on sdpa is leaner and faster with flash_attn than with eager attention.
    """
    attention = usual.attn_implementation
    if device.supports_flash_attention is False:
        return (attention,)
    if attention == "eager":
        return ("flash_attention_2",)
    return (attention, "flash_attention_2") if window and usual.seq_len >= window else (attention,)


def _micro_batches(resolved: ResolvedRecipe, sized: bool, min_batch_tokens: int) -> Iterator[ResolvedRecipe]:
    """Yield the recipe with each micro-batch, accumulated to at least ``min_batch_tokens`` a step.

    Raises:
        UserError: that takes more passes than a recipe can have.
    """
    recipe = resolved.recipe
    size = recipe.batch_size
    while True:
        passes = max(recipe.gradient_accumulation, -(-min_batch_tokens // (size * recipe.seq_len)))
        if passes > LARGEST_BATCH:
            raise UserError(
                f"at least {min_batch_tokens:,} tokens a step take {passes:,} passes of {size * recipe.seq_len:,}, and "
                f"{LARGEST_BATCH:,} are the most: ask for fewer"
            )
        yield resolved.replaced(batch_size=size, gradient_accumulation=passes)
        size *= 2
        if sized or size > LARGEST_MICRO_BATCH:
            return


def _hold(resolved: ResolvedRecipe, device: Device) -> _Fitting | None:
    """Return what the recipe takes and leaves, or None where it does not fit."""
    if not states_fit(resolved, device.usable_bytes):
        return None
    memory = estimate_memory(resolved, compute_capability=device.compute_capability)
    answer, margin = hold_against(memory, device.memory_bytes)
    assert memory.device_total_range_bytes is not None
    return _Fitting(resolved, memory.device_total_range_bytes[1], margin) if answer == "fits" else None


def _named(device: Device, calibration: Calibration | None, fitting: list[_Fitting]) -> list[_Fitting]:
    """Return the recipes to name: the fastest of each method, and what takes less memory than all that is faster."""

    def seconds_a_token(one: _Fitting) -> float:
        recipe = one.resolved.recipe
        tokens = recipe.tokens * recipe.gradient_accumulation
        likely = likely_step_time(one.resolved, device, calibration)
        return step_flops(one.resolved).hardware / tokens if likely is None else likely.total / tokens

    def order(one: _Fitting) -> tuple[int, int, int]:
        """Return the rank of a recipe: by speed, and of what is as fast the plainest first, then what takes least."""
        return round(log(seconds_a_token(one)) / ALIKE), _oddities(one.resolved.recipe), one.device_total_most_bytes

    ordered = sorted(fitting, key=order)
    named: list[_Fitting] = []
    methods: set[str] = set()
    least = float("inf")
    for one in ordered:
        if one.device_total_most_bytes < (1 - LEAST_SAVING) * least or one.resolved.recipe.method not in methods:
            named.append(one)
            methods.add(one.resolved.recipe.method)
            least = min(least, one.device_total_most_bytes)
    fastest = {one.resolved.recipe.method: one for one in reversed(named)}.values()
    others = [one for one in named if one not in fastest]
    kept = [*fastest, *others[: MOST_CHOICES - len(fastest)]]
    return [one for one in named if one in kept]


def _oddities(recipe: Recipe) -> int:
    """Return how many settings are not what people run who have no need for others."""
    plain = {"loss": "standard", "optim": DEFAULT_OPTIMIZER, "attn_implementation": "sdpa"}
    return sum(getattr(recipe, name) not in (value, None) for name, value in plain.items())


def _limits(resolved: ResolvedRecipe, device: Device) -> MethodLimits:
    estimate = estimate_recipe(resolved, device)
    assert estimate.fits is not None
    assert estimate.margin_bytes is not None
    return MethodLimits(
        method=resolved.recipe.method,
        leanest=resolved.recipe,
        fits=estimate.fits,
        margin_bytes=estimate.margin_bytes,
        largest_batch_size=estimate.largest_batch_size,
        longest_seq_len=estimate.longest_seq_len,
        changes=estimate.changes,
    )
