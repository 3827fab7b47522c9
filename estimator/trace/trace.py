"""Trace a recipe: run its real training step on meta tensors, as on the requested device.

transformers, peft, bitsandbytes and torch run as in training, on tensors without contents. A ledger follows every
storage, for CUDA from the first weight on. `cuda_semantics` makes meta tensors behave as on CUDA, and `replay` replays
the allocations in CUDA's caching allocator. It needs no GPU, computes no numbers and uses no formula.

Llama-3.1-8B with QLoRA takes 8.9 to 9.8 s on one core, 4 of them to import the libraries. It needs 371 MiB
(`benchmarks/trace.py`, 22 November 2026, a shared virtual machine of two cores of an AMD EPYC).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.reading import Imported
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.optimizers import paged_states_bytes
from lorabench.estimator.memory.reductions import multiprocessors_of
from lorabench.estimator.memory.replayed import distinct_steps, with_blocks
from lorabench.estimator.models.read_config import MODEL_TYPES
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.quiet import quiet_libraries
from lorabench.estimator.recipes.feasibility import recipe_warnings, refuse_impossible
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.replay import AllocatorState, replay_trace

if TYPE_CHECKING:
    from torch import nn

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
    """The memory at one moment of the last step."""

    phase: str
    event: int
    """Number of earlier allocations and frees in the step."""
    allocated_bytes: int
    """Blocks in use, as ``torch.cuda.memory_allocated`` counts them; on a CPU live tensors."""
    reserved_bytes: int | None
    """Segments that the allocator holds, ``torch.cuda.memory_reserved``; None on a CPU."""


class Trace(Struct, frozen=True, kw_only=True):
    """The traced memory of a training step."""

    recipe: Recipe
    backend: Backend = field(name="kernels")
    """JSON names it ``kernels``: programs read it by that key."""
    parameters: ParameterCounts
    memory: Breakdown
    """At the peak of the last step. On CUDA with blocks, as the replayed allocator counts them; on a CPU of tensors."""
    peak: PeakMoment
    tensors: tuple[AliveTensors, ...]
    """The largest first."""
    timeline: tuple[TimelinePoint, ...]
    """Points of the last step: the start of each phase, the step's peak, and evenly spaced moments between."""
    assumptions: tuple[str, ...] = ()
    """Choices of model, recipe and GPU that the user did not make and that are not defaults, with reasons."""
    warnings: tuple[str, ...] = ()
    """Warnings about a recipe that runs, but is unusual."""
    imported: Imported | None = None
    """What became of the config of another tool; None without one."""


@quiet_libraries()
def trace(
    resolved: ResolvedRecipe,
    *,
    backend: Backend = "cuda",
    steps: int | None = None,
    compute_capability: str | None = None,
    multiprocessors: int | None = None,
    allocator: AllocatorSettings = DEFAULTS,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Trace:
    """Run ``steps`` training steps of the recipe on meta tensors and return the memory of the last one.

    With None it runs until a step makes the tensors of all later ones: most optimizers need two steps. If that step
    changed the allocator's segments, its allocations are replayed once more, and the peaks are those of both. If steps
    empty the allocator's cache, further steps run instead (`distinct_steps`).

    The model runs as on a device of ``backend``, of ``compute_capability`` and so many ``multiprocessors`` (both of
    `Device`). The former decides the size of cuBLAS' workspaces (see `workspaces` for None). Both decide the size of
    sums' buffers, which are left out if one is None. Allocated and reserved bytes are those of CUDA's caching
    allocator, replayed with the settings ``allocator``. If their limit leaves too little memory, the answer is without
    it. ``on_progress`` is called with each stage.

    Raises:
        UserError: the model lacks modules that the recipe names, or the recipe cannot be traced.
        ImportError: torch, transformers, peft or bitsandbytes is not installed.
    """
    recipe = resolved.recipe
    refuse_untraceable(resolved, backend)
    if steps is None:
        steps = OPTIMIZERS[recipe.optim].steady_step + (recipe.empty_cache_steps is not None)
    try:
        ledger, origins, parameters = run_on_meta(
            resolved, backend, steps, on_progress, compute_capability, multiprocessors
        )
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
    moments = list(ledger.live_bytes_of_step())
    states = [AllocatorState(live, None) for _, _, live in moments]
    if backend == "cuda":
        peaks, states = replay_trace(ledger, allocator)
        if peaks.out_of_memory is not None:
            peaks, states = replay_trace(ledger, allocator.unlimited())
        memory = with_blocks(memory, peaks, allocator, compute_capability)
        memory = replace(memory, paged_states_bytes=paged_states_bytes(resolved))
    event = ledger.peak_event()
    born = origins[ledger.storage_of(event)]
    return Trace(
        recipe=recipe,
        backend=backend,
        parameters=parameters,
        memory=memory,
        peak=PeakMoment(phase=memory.phase, module=born.module, operator=born.operator),
        tensors=tuple(_alive(ledger, origins, event)),
        timeline=tuple(_thinned([phase for _, phase, _ in moments], states)),
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


def refuse_untraceable(resolved: ResolvedRecipe, backend: Backend) -> None:
    """Refuse a recipe whose step would differ on meta tensors.

    Raises:
        UserError: the reason, and an alternative.
    """
    from lorabench.estimator.training.model import refuse_missing_kernels

    refuse_impossible(resolved)
    if backend == "cpu":
        refuse_missing_kernels(resolved.recipe, "cpu")


def run_on_meta(
    resolved: ResolvedRecipe,
    backend: Backend,
    steps: int,
    on_progress: Callable[[str], None],
    compute_capability: str | None = None,
    multiprocessors: int | None = None,
) -> tuple[StorageLedger, Origins, ParameterCounts]:
    """Return the ledger of loading and steps, the origins of its storages, and the built model's parameters."""
    import peft

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
    from lorabench.estimator.training.patches import replaced
    from lorabench.estimator.training.step import TrainingStep

    spec, recipe = resolved.spec, resolved.recipe
    on_progress("building the model")
    # In a CPU run, tensors of the host, such as step counters, are on the device.
    devices = ("meta",) if backend == "cuda" else ("meta", "cpu")
    origins = Origins()
    results = MetaResults(backend)
    gpu = multiprocessors_of(compute_capability, multiprocessors)
    scratch = cuda_scratch(gpu) if backend == "cuda" else cpu_scratch()
    ledger = StorageLedger(*devices, scratch=scratch, execute=results, on_birth=origins.note)

    def note_loaded(base: nn.Module) -> None:
        ledger.loaded_bytes = model_bytes(base, *devices)
        ledger.end_phase("loaded")

    def prepare(*arguments: Any, **options: Any) -> Any:
        prepared = peft_prepare(*arguments, **options)
        ledger.empty_cache()  # as peft does, if there is a GPU
        return prepared

    peft_prepare = peft.prepare_model_for_kbit_training
    with building_on_meta(), replaced(peft, "prepare_model_for_kbit_training", prepare):
        # A CPU has no allocator that keeps what loading frees.
        watching = ledger if backend == "cuda" else nullcontext()
        model = build_model(resolved, "meta", on_loaded=note_loaded, watching=watching)
    parameters = count_built(model, spec)
    ledger.adopt_model(model)
    ledger.end_phase("adapted")
    origins.begin_steps(model)
    with running_on_meta(model, backend, results, compute_capability, padding=recipe.padding):
        optimizer = make_optimizer(model, recipe)
        ledger.adopt_optimizer(optimizer)
        ledger.settle()  # as `lorabench run` and `lorabench rehearse` do
        begin_phase = ledger.begin_phase
        if backend == "cuda":
            cublas = CublasWorkspaces(ledger, compute_capability)
            begin_phase, ledger.on_operation = cublas.begin_phase, cublas.take
        step = TrainingStep(model, optimizer, recipe, begin_phase, ledger.empty_cache)
        with ledger, origins.watching(), stepping_on_meta(optimizer, backend, results):
            tile = None if recipe.fused_loss is None else recipe.fused_loss.tile_vocabulary
            ledger.watch_model(model, tile or spec.vocab_size)
            numbers = distinct_steps(steps, OPTIMIZERS[recipe.optim].steady_step, recipe.empty_cache_steps)
            for count, number in enumerate(numbers, start=1):
                on_progress(f"running step {count} of {len(numbers)}")
                ledger.begin_step()
                step.done = number
                step(_batches(recipe, ledger))
                ledger.end_step(model, optimizer)
    return ledger, origins, parameters


def _batches(recipe: Recipe, ledger: StorageLedger) -> Iterator[Batch]:
    import torch

    for _ in range(recipe.gradient_accumulation):
        shape = recipe.batch_size, recipe.seq_len
        names = ("input_ids", "labels", "attention_mask") if recipe.padding else ("input_ids", "labels")
        batch = {name: torch.empty(shape, dtype=torch.int64, device="meta") for name in names}
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


def _thinned(phases: Sequence[str], states: Sequence[AllocatorState]) -> Iterator[TimelinePoint]:
    """Yield points of the last step, of its events' ``phases`` and ``states``.

    These are the start of each phase, the peak, the end, and evenly spaced events between them.
    """
    kept = {event for event, phase in enumerate(phases) if event == 0 or phase != phases[event - 1]}
    kept |= {max(range(len(states)), key=lambda event: states[event].allocated), len(states) - 1}
    stride = -(-len(states) // max(1, TIMELINE_POINTS - len(kept)))
    kept |= set(range(0, len(states), stride))
    for event in sorted(kept):
        allocated, reserved = states[event]
        yield TimelinePoint(phase=phases[event], event=event, allocated_bytes=allocated, reserved_bytes=reserved)
