"""Trace a recipe: run its real training step on meta tensors, as on the requested device.

transformers, peft, bitsandbytes and torch run as in training, on tensors without contents. A ledger follows every
storage. `cuda_semantics` corrects meta tensors where they differ from CUDA. It needs no GPU, computes no numbers and
uses no formula.

Llama-3.1-8B with QLoRA takes 8.9 to 9.8 s on one core, 4 of them to import the libraries, and 371 MiB
(`benchmarks/trace.py`, 22 November 2026, a shared virtual machine of two cores of an AMD EPYC).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.reserved import CUDA_CONTEXT_BYTES, with_context
from lorabench.estimator.models.read_config import MODEL_TYPES
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.quiet import quiet_libraries
from lorabench.estimator.recipes.feasibility import recipe_warnings, refuse_impossible
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

if TYPE_CHECKING:
    from lorabench.estimator.trace.origins import Origins
    from lorabench.estimator.trace.storages import StorageLedger
    from lorabench.estimator.training.step import Batch

TOP_TENSORS = 20
"""A trace lists this many kinds of tensors at the peak."""
TIMELINE_POINTS = 500
"""Maximum number of points in a timeline."""


class PeakMoment(Struct, frozen=True, kw_only=True):
    """The moment of the peak."""

    phase: str
    module: str
    """Path of the module whose forward, recomputation or backward runs; empty outside modules."""
    operator: str
    """The operator whose result or scratch memory completes the peak."""


class AliveTensors(Struct, frozen=True, kw_only=True):
    """Tensors at the peak with the same component, shape, dtype and module (apart from the layer's number)."""

    component: str
    module: str
    """Path of the module that made them, or of the parameter; ``*`` replaces layer numbers."""
    operator: str
    """The operator that made them; empty for tensors from before the first step."""
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int
    """Bytes of all of them."""


class TimelinePoint(Struct, frozen=True, kw_only=True):
    """Live bytes at one moment of the last step."""

    phase: str
    event: int
    """Number of earlier allocations and frees in the step."""
    bytes: int


class Trace(Struct, frozen=True, kw_only=True):
    """The traced memory of a training step."""

    recipe: Recipe
    kernels: Backend
    parameters: ParameterCounts
    memory: Breakdown
    """Bytes of the tensors at the last step's peak, with the bytes that the allocator and the device use for them."""
    max_memory_allocated_bytes: int | None
    """``torch.cuda.max_memory_allocated``: the allocator's blocks, which are larger than their tensors by rounding.
    None on CPU."""
    peak: PeakMoment
    tensors: tuple[AliveTensors, ...]
    """The largest first."""
    timeline: tuple[TimelinePoint, ...]
    """Points of the last step: the start of each phase, its peak, and evenly spaced moments between."""
    assumptions: tuple[str, ...] = ()
    """Choices of model, recipe and GPU that the user did not make and that are not defaults, with reasons."""
    warnings: tuple[str, ...] = ()
    """Warnings about a recipe that runs, but is unusual."""


@quiet_libraries()
def trace(
    resolved: ResolvedRecipe,
    *,
    kernels: Backend = "cuda",
    steps: int | None = None,
    compute_capability: str | None = None,
    expandable_segments: bool = False,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Trace:
    """Run ``steps`` training steps of the recipe on meta tensors and return the memory of the last one.

    None means: until a step equals all later ones, which is the second for most optimizers.

    The model runs as on a device with ``kernels``, with the cuBLAS workspaces of ``compute_capability`` (see
    `workspaces` for None). Reserved bytes are those of CUDA's caching allocator for the same allocations; with
    ``expandable_segments``, in expandable segments. ``on_progress`` is called with each stage.

    Raises:
        UserError: the model lacks modules that the recipe names, or the recipe cannot be traced.
        ImportError: torch, transformers, peft or bitsandbytes is not installed.
    """
    recipe = resolved.recipe
    from lorabench.estimator.memory.allocator import replay

    refuse_untraceable(resolved, kernels)
    if steps is None:
        steps = OPTIMIZERS[recipe.optim].steady_step
    try:
        ledger, origins, parameters = run_on_meta(resolved, kernels, steps, on_progress, compute_capability)
    except (UserError, ImportError):
        raise
    except Exception as error:
        if "overflowed" in str(error):
            raise UserError(
                f"batch_size {recipe.batch_size} and seq_len {recipe.seq_len}: a tensor of the step has more than 2⁶³ "
                "bytes, which torch cannot count: lower one of them"
            ) from error
        if resolved.spec.model_type in MODEL_TYPES:
            raise
        raise _untraceable(resolved, error) from error
    on_progress("reading the ledger")
    memory = ledger.breakdown()
    max_memory_allocated = None
    if kernels == "cuda":
        peaks = replay(ledger.allocations(), expandable_segments=expandable_segments)
        memory = replace(
            memory,
            peak_reserved_bytes=peaks.reserved,
            device_total_bytes=peaks.reserved + CUDA_CONTEXT_BYTES,
            device_total_range_bytes=with_context(peaks.reserved, peaks.reserved),
        )
        max_memory_allocated = peaks.allocated
    event = ledger.peak_event()
    born = origins[ledger.storage_of(event)]
    return Trace(
        recipe=recipe,
        kernels=kernels,
        parameters=parameters,
        memory=memory,
        max_memory_allocated_bytes=max_memory_allocated,
        peak=PeakMoment(phase=memory.phase, module=born.module, operator=born.operator),
        tensors=tuple(_alive(ledger, origins, event)),
        timeline=tuple(_thinned(ledger, event)),
        assumptions=resolved.assumptions,
        warnings=recipe_warnings(resolved),
    )


def _untraceable(resolved: ResolvedRecipe, error: Exception) -> UserError:
    """Return the error message for an exception from the architecture's code, or from peft's for it."""
    spec, recipe = resolved.spec, resolved.recipe
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if "meta tensor" in reason:
        return UserError(
            f"{spec.name}: the step of a {spec.model_type} depends on the values of tensors, and a trace has none "
            f"({reason}): measure it with lorabench run"
        )
    attention = any(linear.part == "attention" for layer in spec.layers for linear in layer.linears)
    adapts_more = attention and recipe.adapter is not None and recipe.adapter.target_modules != "attention"
    return UserError(
        f"{spec.name}: the step of a {spec.model_type} cannot be traced with this recipe ({reason}): "
        f"{'try --target-modules attention' if adapts_more else 'change the recipe'}, or measure it with lorabench run"
    )


def refuse_untraceable(resolved: ResolvedRecipe, kernels: Backend) -> None:
    """Refuse a recipe whose step would differ on meta tensors.

    Raises:
        UserError: the reason, and an alternative.
    """
    from lorabench.estimator.training.model import refuse_missing_kernels

    refuse_impossible(resolved)
    if kernels == "cpu":
        refuse_missing_kernels(resolved.recipe, "cpu")


def run_on_meta(
    resolved: ResolvedRecipe,
    kernels: Backend,
    steps: int,
    on_progress: Callable[[str], None],
    compute_capability: str | None = None,
) -> tuple[StorageLedger, Origins, ParameterCounts]:
    """Return the ledger of the steps, the origins of its storages, and the built model's parameters."""
    from lorabench.estimator.trace.cublas import CublasWorkspaces
    from lorabench.estimator.trace.cuda_semantics import building_on_meta, running_on_meta, stepping_on_meta
    from lorabench.estimator.trace.meta_results import MetaResults
    from lorabench.estimator.trace.model_tensors import model_bytes
    from lorabench.estimator.trace.origins import Origins
    from lorabench.estimator.trace.scratch import cpu_scratch, cuda_scratch
    from lorabench.estimator.trace.storages import StorageLedger
    from lorabench.estimator.training.model import build_model
    from lorabench.estimator.training.optimizer import make_optimizer
    from lorabench.estimator.training.parameters import count_built
    from lorabench.estimator.training.step import TrainingStep

    spec, recipe = resolved.spec, resolved.recipe
    on_progress("building the model")
    # In a CPU run, tensors of the host, such as step counters, are on the device.
    devices = ("meta",) if kernels == "cuda" else ("meta", "cpu")
    loaded: list[int] = []
    with building_on_meta():
        model = build_model(resolved, "meta", on_loaded=lambda base: loaded.append(model_bytes(base, *devices)))
    parameters = count_built(model, spec)
    origins = Origins(model)
    results = MetaResults(kernels)
    scratch = cuda_scratch() if kernels == "cuda" else cpu_scratch()
    ledger = StorageLedger(*devices, scratch=scratch, execute=results, on_birth=origins.note)
    ledger.loaded_bytes = loaded[0]
    ledger.adopt_model(model)
    with running_on_meta(model, kernels, results, compute_capability):
        optimizer = make_optimizer(model, recipe)
        begin_phase = ledger.begin_phase
        if kernels == "cuda":
            cublas = CublasWorkspaces(ledger, compute_capability)
            begin_phase, ledger.on_operation = cublas.begin_phase, cublas.take
        step = TrainingStep(model, optimizer, recipe, begin_phase)
        with ledger, origins.watching(), stepping_on_meta(optimizer, kernels, results):
            ledger.watch_model(model, spec.vocab_size)
            for number in range(steps):
                on_progress(f"running step {number + 1} of {steps}")
                ledger.begin_step()
                step(_batches(recipe, ledger))
                ledger.end_step(model, optimizer)
    return ledger, origins, parameters


def _batches(recipe: Recipe, ledger: StorageLedger) -> Iterator[Batch]:
    import torch

    for _ in range(recipe.gradient_accumulation):
        shape = recipe.batch_size, recipe.seq_len
        batch = {name: torch.empty(shape, dtype=torch.int64, device="meta") for name in ("input_ids", "labels")}
        ledger.adopt("buffers", *batch.values())
        yield batch


def _alive(ledger: StorageLedger, origins: Origins, event: int) -> list[AliveTensors]:
    """Return the tensors that are alive after ``event``, grouped, the largest first."""
    counts: Counter[tuple[str, str, str, tuple[int, ...], str]] = Counter()
    sizes: Counter[tuple[str, str, str, tuple[int, ...], str]] = Counter()
    for storage, component, size in ledger.alive_after(event):
        origin = origins[storage]
        module = ".".join("*" if part.isdecimal() else part for part in origin.module.split("."))
        kind = component, module, origin.operator, origin.shape, origin.dtype
        counts[kind] += 1
        sizes[kind] += size
    return [
        AliveTensors(
            component=component,
            module=module,
            operator=operator,
            shape=shape,
            dtype=dtype,
            count=counts[kind],
            bytes=size,
        )
        for kind, size in sizes.most_common(TOP_TENSORS)
        for component, module, operator, shape, dtype in [kind]
    ]


def _thinned(ledger: StorageLedger, peak_event: int) -> Iterator[TimelinePoint]:
    """Yield live bytes over the last step: phase starts, the peak, and evenly spaced events between them."""
    points = list(ledger.live_bytes_of_step())
    start = points[0][0]
    kept = {index for index, (_, phase, _) in enumerate(points) if index == 0 or phase != points[index - 1][1]}
    kept |= {peak_event - start, len(points) - 1}
    stride = -(-len(points) // max(1, TIMELINE_POINTS - len(kept)))
    kept |= set(range(0, len(points), stride))
    for index in sorted(kept):
        event, phase, live = points[index]
        yield TimelinePoint(phase=phase, event=event - start, bytes=live)
