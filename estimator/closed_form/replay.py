"""A replay of CUDA's caching allocator over a recipe's steps, allocation by allocation.

`memory` has the bytes that tensors request. The bytes that the allocator counts, and those that it takes from the
device, depend on the order of all earlier allocations. So the replay loads the model tensor by tensor, and then runs
whole steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice

from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.sizes import Values
from lorabench.estimator.closed_form.walk import PASSING, Mark, Walk, chunks_of, evaluation_walk, walk
from lorabench.estimator.collection import no_collection
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.memory.allocator import LARGEST_SMALL, CachingAllocator
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.clipping import clipping_buffers
from lorabench.estimator.memory.loading import EMPTY_CACHE, loading
from lorabench.estimator.memory.reductions import Multiprocessors, multiprocessors_of, reduction_buffer
from lorabench.estimator.memory.replayed import OutOfMemory, Replayed, distinct_steps, with_blocks
from lorabench.estimator.memory.workspaces import HANDLES, workspaces
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.optimizers.states import shared_blocks
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.temporaries import Assign, MeanOfRows
from lorabench.estimator.optimizers.tensors import TrainedTensors, one_by_one
from lorabench.estimator.recipes.resolved import ResolvedRecipe

STEADY_STEPS = 2
"""Steps that are replayed of those that allocate the same tensors. The second starts with the cache that the first
leaves, as later ones."""
MOST_REPLAYED_LAYERS = 128
"""Layers of the deepest model that is replayed. A replay goes through each layer, and its time grows faster than their
number; the deepest model of the catalogue has 126."""
MICRO_BATCHES = 3
"""Micro-batches of a step that are replayed. The third starts with the cache that the second leaves, as later ones."""


def replayed_memory(
    resolved: ResolvedRecipe,
    backend: Backend = "cuda",
    compute_capability: str | None = None,
    multiprocessors: int | None = None,
    *,
    allocator: AllocatorSettings = DEFAULTS,
) -> Breakdown:
    """Return the breakdown of the recipe, with allocated and reserved bytes as CUDA's allocator counts them.

    ``compute_capability`` and ``multiprocessors`` are those of `Training`. If the limit of ``allocator`` leaves too
    little memory, the answer is without the limit. A CPU has no such allocator: there, and for a model that is not
    replayed, it is `estimate_memory`.

    Raises:
        UserError: as in `estimate_memory`.
    """
    if backend == "cpu" or not is_replayed(resolved.spec):
        return estimate_memory(resolved, backend, compute_capability)
    return Training(resolved, compute_capability, multiprocessors).memory(allocator)


def is_replayed(spec: ModelSpec) -> bool:
    """Return whether the model has at most `MOST_REPLAYED_LAYERS`, and no scans that loop, which make too many
    allocations. Reserved memory of others has a range."""
    return not warn_of_no_replay(spec)


def warn_of_no_replay(spec: ModelSpec) -> tuple[str, ...]:
    """Return what to say of a model that is not replayed."""
    if spec.scan_loops:
        return (f"the allocator is not replayed for the scans of a {spec.model_type}: reserved memory has a range",)
    if spec.num_hidden_layers <= MOST_REPLAYED_LAYERS:
        return ()
    return (
        f"the allocator is replayed for at most {MOST_REPLAYED_LAYERS} layers, and {spec.name} has "
        f"{spec.num_hidden_layers}: reserved memory has a range",
    )


class Training:
    """A recipe's training: one walk, and any number of replays."""

    def __init__(
        self,
        resolved: ResolvedRecipe,
        compute_capability: str | None = None,
        multiprocessors: int | None = None,
        *,
        resizes: Training | None = None,
    ) -> None:
        """Walk the step of ``resolved`` for a GPU's ``compute_capability`` and number of ``multiprocessors``.

        Both are as in `Device`. Buffers of reductions depend on both, and are left out if one is not known.
        ``resizes``: a training of the same recipe with another batch size or length. Its model is loaded alike, so the
        replays of both begin with one replay of loading.

        Raises:
            UserError: the model lacks the target modules, or no kernel runs the combination.
        """
        self.resolved = resolved
        self.compute_capability = compute_capability
        self.workspace_bytes = workspaces(compute_capability).bytes // HANDLES
        setup, values = Setup(resolved, "cuda", compute_capability), Values(resolved)
        self.tensors = list(one_by_one(resolved.trained_tensors))
        self.gpu = gpu = multiprocessors_of(compute_capability, multiprocessors)
        chunks = chunks_of(resolved)
        self.micro_batches = [MicroBatch(walk(setup, chunks, accumulating=False), values, gpu)]
        more = min(resolved.recipe.gradient_accumulation, MICRO_BATCHES) - 1
        if more:
            self.micro_batches += [MicroBatch(walk(setup, chunks, accumulating=True), values, gpu)] * more
        self._sizes = values, gpu
        self._walked = setup, chunks
        self._loaded: dict[tuple[AllocatorSettings, int | None], Replay] = {} if resizes is None else resizes._loaded
        """Replays that have loaded the model, by settings and capacity."""

    def memory(self, settings: AllocatorSettings = DEFAULTS) -> Breakdown:
        """Return `replayed_memory` of the recipe on CUDA."""
        memory = estimate_memory(self.resolved, "cuda", self.compute_capability)
        replayed = self.replay(settings)
        if replayed.out_of_memory is not None:
            replayed = self.replay(settings.unlimited())
        return with_blocks(memory, replayed, settings, self.compute_capability)

    @cached_property
    def evaluation(self) -> MicroBatch:
        """The evaluation of one batch."""
        return MicroBatch(evaluation_walk(*self._walked), *self._sizes)

    @no_collection()
    def replay(self, settings: AllocatorSettings = DEFAULTS, *, capacity: int | None = None) -> Replayed:
        """Return what the allocator counts on a device that has ``capacity`` bytes to give; None for any number.

        With a capacity, memory may also run out in an evaluation after the steps, or in the step that follows it: an
        evaluation leaves other gaps. It changes nothing else.
        """
        # The capacity decides the addresses of expandable segments. Else it changes nothing while there is room.
        loaded = self._after_loading(settings, capacity if settings.expandable_segments else None)
        if capacity is not None and loaded.reserved_while_loading > capacity:
            loaded = self._after_loading(settings, capacity)
        return loaded.copied(self, capacity).train()

    def _after_loading(self, settings: AllocatorSettings, capacity: int | None) -> Replay:
        if (settings, capacity) not in self._loaded:
            self._loaded[settings, capacity] = replay = Replay(self, CachingAllocator(settings, capacity=capacity))
            replay.load()
        return self._loaded[settings, capacity]


class MicroBatch:
    """A walk with the recipe's own sizes."""

    def __init__(self, walked: Walk, values: Values, gpu: Multiprocessors | None) -> None:
        self.blocks = walked.blocks
        self.sizes = walked.sizes(values, gpu)
        self.marks: list[tuple[int, Mark | None]] = [*walked.marks, (len(self.sizes), None)]
        self.gradients = walked.gradients
        self.outputs = walked.outputs

    def events(self) -> Iterator[tuple[int, int]]:
        """Yield (block, bytes) for an allocation and (block, 0) for a free, in order."""
        return zip(self.blocks, self.sizes, strict=True)


class _Full(Exception):  # noqa: N818 - it ends a replay as StopIteration ends a loop
    pass


class Replay:
    """One replay of a training, on one allocator."""

    def __init__(self, training: Training, allocator: CachingAllocator) -> None:
        self._training = training
        self._allocator = allocator
        self._optimizer = OPTIMIZERS[training.resolved.recipe.optim]
        self._allocate = allocator.allocate
        self._free = allocator.free
        self._keys = 0
        self._phase = "loaded"
        self._peaks: dict[str, int] = {}
        self._threads_with_workspace: set[str] = set()
        self._outputs: list[int] = []
        self._empties = False
        """Whether this step empties the cache."""
        self._failure: OutOfMemory | None = None
        self.reserved_while_loading = 0
        """Most bytes that were reserved while the model was loaded."""

    def copied(self, training: Training, capacity: int | None) -> Replay:
        """Return a replay of ``training`` that goes on where this one is, on a device of ``capacity``."""
        twin = Replay(training, self._allocator.copied())
        twin._allocator.capacity = capacity
        twin._keys, twin._phase, twin._failure = self._keys, self._phase, self._failure
        twin._peaks, twin._outputs = dict(self._peaks), [*self._outputs]
        twin._threads_with_workspace = {*self._threads_with_workspace}
        return twin

    def load(self) -> None:
        """Load and prepare the model, and empty the cache, as `lorabench run` does before its steps."""
        with suppress(_Full):
            self._load()
        self.reserved_while_loading = self._allocator.peak_reserved
        if self._failure is None:
            self._allocator.peak_reserved = self._allocator.reserved
            self._peaks["adapted"] = self._allocator.allocated

    def train(self) -> Replayed:
        """Return what the allocator counts over the steps."""
        if self._failure is None:
            with suppress(_Full):
                self._steps()
        most = max(self._peaks.values(), default=self._allocator.peak_allocated)
        reserved, peaks = self._allocator.peak_reserved, dict(self._peaks)
        if self._failure is None and self._allocator.capacity is not None:
            self._evaluate()
        return Replayed(most, reserved, peaks, self._failure)

    def _steps(self) -> None:
        allocator, recipe = self._allocator, self._training.resolved.recipe
        steady_step = self._optimizer.steady_step
        repeats = False
        for number in distinct_steps(steady_step + STEADY_STEPS - 1, steady_step, recipe.empty_cache_steps):
            if repeats and not recipe.empties_cache(number):
                continue
            steady = number >= steady_step - 1
            if number == steady_step - 1:
                self._peaks = {"adapted": self._peaks["adapted"]}
                allocator.peak_allocated = allocator.allocated
            small, large = allocator.small.exchanges, allocator.large.exchanges
            self._step(number)
            # If all large blocks of a step are free again, in the same segments, later steps take the same ones.
            repeats = (
                steady
                and allocator.large.exchanges == large
                and (allocator.small.exchanges == small or self._small_pool_serves_another_step())
            )

    def _small_pool_serves_another_step(self) -> bool:
        """Return whether the next step takes nothing from the device, if its large blocks are those of the last one."""
        if self._outputs:
            return False  # they change places in the large pool
        trial = self.copied(self._training, self._allocator.capacity)
        allocator, before = trial._allocator, trial._allocator.exchanges
        trial._allocate = lambda key, size: size > LARGEST_SMALL or allocator.allocate(key, size)
        trial._free = lambda key: allocator.free(key) if key in allocator.in_use else None
        with suppress(_Full):
            trial._step(self._optimizer.steady_step - 1)
        return trial._failure is None and allocator.exchanges == before

    def _evaluate(self) -> None:
        """Evaluate, and train another step."""
        self._phase = "evaluation"
        with suppress(_Full):
            before = self._allocator.exchanges
            self._micro_batch(self._training.evaluation)
            if self._allocator.exchanges != before:  # else the next step finds what the last one left
                self._step(self._optimizer.steady_step + STEADY_STEPS - 1)

    def _fail(self, size: int) -> _Full:
        """Note that an allocation of ``size`` found no room, and return the exception that ends the replay."""
        self._failure = OutOfMemory(self._phase, size)
        return _Full()

    def _load(self) -> None:
        for block, size in loading(self._training.resolved):
            self._keys = max(self._keys, block)
            if (block, size) == EMPTY_CACHE:
                self._allocator.empty_cache()
            elif size == 0:
                self._free(block)
            elif not self._allocate(block, size):
                raise self._fail(size)
        if self._optimizer.states_made == "constructor":
            self._make_states(self._training.tensors)
        self._allocator.empty_cache()

    def _make_states(self, tensors: Sequence[TrainedTensors]) -> None:
        """Allocate the states that all ``tensors`` share, and then those of each."""
        for state in self._optimizer.states:
            for size in shared_blocks(state, tensors):
                self._hold(size)
        for tensor in tensors:
            for state in self._optimizer.states:
                for size in state.blocks(tensor, "cuda"):
                    self._hold(size)

    def _hold(self, size: int) -> int:
        """Allocate a block of ``size`` bytes, and return its key."""
        self._keys += 1
        if not self._allocate(self._keys, size):
            raise self._fail(size)
        return self._keys

    def _step(self, number: int) -> None:
        """Replay a step. Steps are numbered from 0, and later ones are as the optimizer's steady step."""
        self._empties = self._training.resolved.recipe.empties_cache(number)
        gradients: list[int] = []
        for walked in self._training.micro_batches:
            gradients += self._micro_batch(walked)
        self._begin("optimizer")
        self._clip()
        if number == 0 and self._optimizer.states_made == "first step":
            self._make_states(self._training.tensors)
        if number >= self._optimizer.idle_steps:
            self._temporaries(first=number == 0)
        self._end_phase()
        self._free_all(gradients)

    def _clip(self) -> None:
        """Compute the gradients' norms, which are kept until their total is known."""
        norms: list[int] = []
        for buffer, sizes in clipping_buffers(self._training.resolved.trained_tensors):
            key = self._hold(buffer)
            norms += map(self._hold, sizes)
            self._free(key)
        self._free_all(norms)

    def _begin(self, phase: str) -> None:
        self._end_phase()
        self._phase = phase
        self._allocator.peak_allocated = self._allocator.allocated

    def _end_phase(self) -> None:
        if self._phase != "loaded":
            self._peaks[self._phase] = max(self._peaks.get(self._phase, 0), self._allocator.peak_allocated)

    def _micro_batch(self, walked: MicroBatch) -> list[int]:
        """Replay one micro-batch, and return the keys of its gradients, which live until the step ends."""
        base = self._keys + 1
        self._keys += len(walked.blocks)
        allocate, free = self._allocate, self._free
        events = walked.events()
        start = 0
        for end, mark in walked.marks:
            for block, size in islice(events, end - start):
                if block == PASSING:
                    if size:
                        free(self._hold(size))
                elif size == 0:
                    free(base + block)
                elif not allocate(base + block, size):
                    raise self._fail(size)
            start = end
            if mark == "backward":
                for key in self._outputs:
                    free(key)
                self._outputs = [base + block for block in walked.outputs]
                if self._empties:
                    self._allocator.empty_cache()
            if mark is not None:
                self._reach(mark)
        return [base + block for block in walked.gradients]

    def _reach(self, mark: Mark) -> None:
        if mark == "workspace":
            if self._phase not in self._threads_with_workspace:
                self._threads_with_workspace.add(self._phase)
                self._hold(self._training.workspace_bytes)
        elif mark != "optimizer":
            self._begin(mark)

    def _temporaries(self, *, first: bool) -> None:
        held: dict[str, list[int]] = {}
        gpu = self._training.gpu
        waiting = iter(self._training.tensors)
        for statement in self._optimizer.temporaries(self._training.tensors, "cuda"):
            if isinstance(statement, Assign):
                keys = [self._hold(size) for size in statement.blocks]
                self._free_all(held.get(statement.variable, []))
                held[statement.variable] = keys
            elif isinstance(statement, MeanOfRows):
                buffer = (
                    0 if gpu is None else reduction_buffer(statement.rows, statement.outputs, ITEMSIZE["float32"], gpu)
                )
                if buffer:
                    self._free(self._hold(buffer))
            else:
                tensor = next(waiting)
                if first and self._optimizer.states_made == "tensor by tensor":
                    self._make_states([tensor])
        for keys in held.values():
            self._free_all(keys)

    def _free_all(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._free(key)
