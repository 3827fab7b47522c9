"""Search for the fastest recipes that fit a GPU, and for GPUs that fit a recipe: the searches of `lorabench plan`.

All open settings are searched: method, precision, optimizer, checkpointing, attention, loss and micro-batch. The bytes
of a recipe's tensors say whether it may fit; a replay of the allocator decides for the recipes that are returned.
Memory, verdict and speed equal those of `estimates.estimate_recipe` with a replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import log
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.answers.support import unsupported
from lorabench.estimator.answers.verdict import LARGEST_BATCH, Change, replayed_verdict, states_fit, usable_bytes
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import warn_of_no_replay
from lorabench.estimator.collection import no_collection
from lorabench.estimator.devices.device import Device, all_devices
from lorabench.estimator.errors import UserError
from lorabench.estimator.frames import frame_of
from lorabench.estimator.imported.reading import Imported
from lorabench.estimator.losses.liger import LIGER
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.context import context_of
from lorabench.estimator.methods.catalogue import METHODS, Method, Parts
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.optimizers.table import DEFAULT_OPTIMIZER, OPTIMIZERS
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import recipe_warnings, refuse_impossible
from lorabench.estimator.recipes.recipe import Recipe, with_all_settings
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.calibrations import Calibration
from lorabench.estimator.speed.flops import step_flops
from lorabench.estimator.speed.throughput import Throughput, estimate_throughput, likely_step_time

if TYPE_CHECKING:
    from pandas import DataFrame

TRIED_METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
TRIED_OPTIMIZERS = (DEFAULT_OPTIMIZER, OPTIMIZERS[DEFAULT_OPTIMIZER].smaller or DEFAULT_OPTIMIZER)
"""The fastest optimizer, and its variant with the smallest states."""
MOST_CHOICES = 8
"""The largest number of recipes that are returned."""
LARGEST_MICRO_BATCH = 32
"""Micro-batches are searched in powers of two up to this. Larger ones do not use the GPU better."""
EQUAL_SPEED = 0.02
"""Speeds with a smaller relative difference count as equal."""
LEAST_SAVING = 0.05
"""A slower recipe is returned only if it saves at least this share of memory."""


class Choice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recipe that fits."""

    recipe: Recipe
    device_total_most_bytes: int
    """Upper end of its device total."""
    margin_bytes: int
    """Usable bytes minus ``device_total_most_bytes``; 0 if it fits only because cached segments are released."""
    throughput: Throughput | None = None
    """None if the GPU's rates are unknown."""


class MethodLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of one method on the GPU, with the settings that need the least memory."""

    method: str
    leanest: Recipe
    fits: bool
    margin_bytes: int
    """Negative if it does not fit."""
    largest_batch_size: int | None = None
    """Largest batch size at the recipe's length; None if 1 does not fit."""
    longest_seq_len: int | None = None
    """Longest sequence at the recipe's micro-batch; None if no length fits."""
    changes: tuple[Change, ...] = ()
    """Changes that make it fit, if it does not."""


class Plan(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The recipes to run on one GPU."""

    model: str
    gpu: str
    gpu_memory_bytes: int
    gpu_usable_bytes: int
    seq_len: int
    tried: int
    """Number of recipes that were compared with the GPU."""
    choices: tuple[Choice, ...]
    """The fastest first, or without known rates the one with the fewest FLOPs. Each later recipe needs less memory than
    all before it, or is the fastest of its method. Empty if nothing fits."""
    methods: tuple[MethodLimits, ...]
    assumptions: tuple[str, ...] = ()
    """Choices of model, recipes and GPU that the user did not make and that are not defaults, with reasons."""
    warnings: tuple[str, ...] = ()
    """Warnings about recipes that run, but are unusual."""
    imported: Imported | None = None
    """What became of the config of another tool; None without one."""

    def to_frame(self) -> DataFrame:
        """Return a data frame of pandas with a line for each choice: its settings, memory and speed.

        Raises:
            UserError: pandas is not installed.
        """
        return frame_of(
            {
                **row,
                "gpu": self.gpu,
                "gpu_usable_bytes": self.gpu_usable_bytes,
                "device_total_most_bytes": choice.device_total_most_bytes,
                "margin_bytes": choice.margin_bytes,
                "step_seconds": choice.throughput and choice.throughput.step_seconds,
                "tokens_per_second": choice.throughput and choice.throughput.tokens_per_second,
            }
            for row, choice in zip(
                with_all_settings(choice.recipe.settings() for choice in self.choices), self.choices, strict=True
            )
        )


class EnoughGpu(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A GPU that a recipe fits."""

    gpu: str
    title: str
    gpu_memory_bytes: int
    gpu_usable_bytes: int
    margin_bytes: int
    throughput: Throughput | None = None


class _Candidate(NamedTuple):
    """A recipe whose tensors leave room for the context."""

    resolved: ResolvedRecipe
    device_total_bytes: int
    """Its device total if the allocator left no gaps."""


class _Fitting(NamedTuple):
    """A recipe that runs in a replay of the allocator."""

    resolved: ResolvedRecipe
    device_total_bytes: int
    """As in `_Candidate`."""
    device_total_most_bytes: int
    margin_bytes: int


@no_collection()
def make_plan(
    spec: ModelSpec,
    device: Device,
    fixed: dict[str, Any],
    min_batch_tokens: int = 1,
    calibration: Calibration | None = None,
    *,
    allocator: AllocatorSettings = DEFAULTS,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Plan:
    """Return the plan for ``device``: the best recipes of ``spec`` with the ``fixed`` settings.

    A step accumulates micro-batches until it has at least ``min_batch_tokens``. ``allocator``: the settings of the
    allocator that is replayed. ``on_progress`` is called with each stage.

    Raises:
        UserError: settings contradict each other, or the model does not support them; ``min_batch_tokens`` needs more
            passes than a recipe can have.
    """
    tried = 0
    allocator = allocator.on(device.usable_bytes)
    candidates: list[_Candidate] = []
    leanest: dict[str, ResolvedRecipe] = {}
    assumptions: dict[str, None] = {}
    for resolved in _open_recipes(spec, device, fixed):
        assumptions |= dict.fromkeys(resolved.assumptions)
        leanest[resolved.recipe.method] = resolved  # the last recipe of each method needs the least memory
        for sized in _micro_batches(resolved, "batch_size" in fixed, min_batch_tokens):
            tried += 1
            candidate = _if_it_may_fit(sized, device, allocator)
            if candidate is None:
                break  # no larger micro-batch fits either
            candidates.append(candidate)

    def confirmed(one: _Candidate) -> _Fitting | None:
        on_progress(f"replaying the allocator for {one.resolved.recipe.label()}")
        return _if_it_fits(one, device, allocator)

    named = _named(device, calibration, candidates, confirmed)
    limits = []
    for resolved in leanest.values():
        on_progress(f"searching the limits of {resolved.recipe.method}")
        limits.append(_limits(resolved, device, allocator))
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
        methods=tuple(limits),
        assumptions=(*assumptions, *device.assumptions),
        warnings=(
            *dict.fromkeys(said for one in leanest.values() for said in recipe_warnings(one)),
            *warn_of_no_replay(spec),
            *allocator.warnings(),
        ),
    )


def enough_gpus(
    resolved: ResolvedRecipe,
    *,
    allocator: AllocatorSettings = DEFAULTS,
    on_progress: Callable[[str], None] = lambda what: None,
) -> list[EnoughGpu]:
    """Return the GPUs of the catalogue that the recipe fits, sorted by memory, then by board power.

    ``allocator`` and ``on_progress``: as in `make_plan`.

    Raises:
        UserError: the model does not support the recipe.
    """
    refuse_impossible(resolved)
    found = []
    for device in sorted(all_devices(), key=lambda device: (device.memory_bytes, device.tdp_watts or 0)):
        if unsupported(resolved.recipe, device):
            continue
        on_progress(f"replaying the allocator of {device.name}")
        settings = allocator.on(device.usable_bytes)
        candidate = _if_it_may_fit(resolved, device, settings)
        fitting = None if candidate is None else _if_it_fits(candidate, device, settings)
        if fitting is not None:
            found.append(
                EnoughGpu(
                    gpu=device.name,
                    title=device.title,
                    gpu_memory_bytes=device.memory_bytes,
                    gpu_usable_bytes=device.usable_bytes,
                    margin_bytes=fitting.margin_bytes,
                    throughput=estimate_throughput(resolved, device),
                )
            )
    return found


def _open_recipes(spec: ModelSpec, device: Device, fixed: dict[str, Any]) -> Iterator[ResolvedRecipe]:
    """Yield a recipe for each combination of open settings, at micro-batch 1.

    The last recipe of each method is the one with the least memory.

    Raises:
        UserError: no combination is possible.
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
            ("standard", "liger") if LIGER.replaces_that_of(spec.model_type) else ("standard",),
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
            raise UserError(f"{device.name} has no {lacks[0]}, which the settings require: leave that setting open")
        assert refusal is not None
        raise refusal


def _precisions(parts: Parts, half: str) -> list[dict[str, Any]]:
    """Return the precisions to search for a method, with 16-bit dtype ``half``. The last one needs the least memory."""
    mixed = "fp16" if half == "float16" else "bf16"
    if parts.adapter is not None:
        return [{"dtype": half, "mixed_precision": mixed}]
    of_full: list[dict[str, Any]] = [{"dtype": "float32", "mixed_precision": mixed}]
    if half == "bfloat16":  # float16's range is too small for trained weights
        of_full.append({"dtype": "bfloat16", "mixed_precision": "no"})
    return of_full


def _attentions(device: Device, usual: Recipe, window: int | None) -> tuple[str, ...]:
    """Return the attention implementations to search. The last one needs the least memory.

    flash_attn is among them if the ``usual`` one is worse. If no sequence fills the sliding window, sdpa runs the same
    kernel. If a sequence fills it, sdpa needs a mask, and flash_attn does not. If sdpa is not possible, flash_attn is
    faster than eager attention and needs less memory.
    """
    attention = usual.attn_implementation
    if device.supports_flash_attention is False:
        return (attention,)
    if attention == "eager":
        return ("flash_attention_2",)
    return (attention, "flash_attention_2") if window and usual.seq_len >= window else (attention,)


def _micro_batches(resolved: ResolvedRecipe, sized: bool, min_batch_tokens: int) -> Iterator[ResolvedRecipe]:
    """Yield the recipe with each micro-batch, accumulated to at least ``min_batch_tokens`` per step.

    Raises:
        UserError: this needs more passes than a recipe can have.
    """
    recipe = resolved.recipe
    size = recipe.batch_size
    while True:
        passes = max(recipe.gradient_accumulation, -(-min_batch_tokens // (size * recipe.seq_len)))
        if passes > LARGEST_BATCH:
            raise UserError(
                f"at least {min_batch_tokens:,} tokens a step need {passes:,} passes of {size * recipe.seq_len:,} "
                f"tokens, and the limit is {LARGEST_BATCH:,} passes: request fewer tokens"
            )
        yield resolved.replaced(batch_size=size, gradient_accumulation=passes)
        size *= 2
        if sized or size > LARGEST_MICRO_BATCH:
            return


def _if_it_may_fit(resolved: ResolvedRecipe, device: Device, allocator: AllocatorSettings) -> _Candidate | None:
    """Return the recipe's memory without gaps; None if that is too much."""
    usable = usable_bytes(device, allocator)
    if not states_fit(resolved, device, usable):
        return None
    memory = estimate_memory(resolved, compute_capability=device.compute_capability)
    total = memory.peak_allocated_bytes + context_of(device.compute_capability).most
    return _Candidate(resolved, total) if total <= usable else None


def _if_it_fits(candidate: _Candidate, device: Device, allocator: AllocatorSettings) -> _Fitting | None:
    """Return the recipe's memory and margin by a replay of the allocator; None if that runs out of memory."""
    replayed = replayed_verdict(candidate.resolved, device, allocator)
    if not replayed.fits:
        return None
    return _Fitting(*candidate, replayed.device_total_most_bytes, replayed.margin_bytes)


def _named(
    device: Device,
    calibration: Calibration | None,
    candidates: list[_Candidate],
    confirmed: Callable[[_Candidate], _Fitting | None],
) -> list[_Fitting]:
    """Return the recipes to show: the fastest of each method, and those that need less memory than all faster ones.

    A recipe is ``confirmed`` only if it would be shown; if it does not fit after all, the next one may take its place.
    """

    def seconds_a_token(one: _Candidate) -> float:
        recipe = one.resolved.recipe
        tokens = recipe.tokens * recipe.gradient_accumulation
        likely = likely_step_time(one.resolved, device, calibration)
        return step_flops(one.resolved).hardware / tokens if likely is None else likely.total / tokens

    def order(one: _Candidate) -> tuple[int, int, int]:
        """Return the sort key of a recipe: its speed, then the number of unusual settings, then its memory."""
        return (
            round(log(seconds_a_token(one)) / EQUAL_SPEED),
            _unusual_settings(one.resolved.recipe),
            one.device_total_bytes,
        )

    named: list[_Fitting] = []
    methods: set[str] = set()

    def worth_showing(one: _Candidate | _Fitting) -> bool:
        least = min((other.device_total_bytes for other in named), default=float("inf"))
        if one.resolved.recipe.method not in methods:
            return True
        if isinstance(one, _Fitting) and one.device_total_most_bytes >= min(
            other.device_total_most_bytes for other in named
        ):
            return False  # gaps outweigh what its tensors save
        return one.device_total_bytes < (1 - LEAST_SAVING) * least

    for one in sorted(candidates, key=order):
        if not worth_showing(one):
            continue
        fitting = confirmed(one)
        if fitting is not None and worth_showing(fitting):
            named.append(fitting)
            methods.add(one.resolved.recipe.method)
    fastest = {one.resolved.recipe.method: one for one in reversed(named)}.values()
    others = [one for one in named if one not in fastest]
    kept = [*fastest, *others[: MOST_CHOICES - len(fastest)]]
    return [one for one in named if one in kept]


def _unusual_settings(recipe: Recipe) -> int:
    """Return the number of settings that differ from the usual ones."""
    plain = {"loss": "standard", "optim": DEFAULT_OPTIMIZER, "attn_implementation": "sdpa"}
    return sum(getattr(recipe, name) not in (value, None) for name, value in plain.items())


def _limits(resolved: ResolvedRecipe, device: Device, allocator: AllocatorSettings) -> MethodLimits:
    estimate = estimate_recipe(resolved, device, replay=True, allocator=allocator)
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
