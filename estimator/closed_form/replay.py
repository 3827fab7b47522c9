"""A replay of CUDA's caching allocator over a recipe's steps, allocation by allocation.

`memory` has the bytes that tensors request. The bytes that the allocator counts, and those that it takes from the
device, depend on the order of all earlier allocations. So the replay loads the model tensor by tensor, and then runs
whole steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.sizes import Values
from lorabench.estimator.closed_form.walk import PASSING, Mark, Walk, evaluation_walk, walk
from lorabench.estimator.collection import no_collection
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.memory.allocator import CachingAllocator
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.clipping import clipping_buffers
from lorabench.estimator.memory.loading import EMPTY_CACHE, loading
from lorabench.estimator.memory.reductions import Multiprocessors, multiprocessors_of
from lorabench.estimator.memory.replayed import OutOfMemory, Replayed, with_blocks
from lorabench.estimator.memory.workspaces import HANDLES, workspaces
from lorabench.estimator.optimizers.states import shared_blocks
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.tensors import one_by_one
from lorabench.estimator.recipes.resolved import ResolvedRecipe

STEPS = 3
"""The first step allocates the optimizer's states; the second starts with the cache that they leave, as later ones."""
MICRO_BATCHES = 3
"""Micro-batches of a step that are replayed. The third starts with the cache that the second leaves, as later ones."""


@no_collection()
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
    little memory, the answer is without the limit. A CPU has no such allocator: there it is `estimate_memory`.

    Raises:
        UserError: as in `estimate_memory`.
    """
    memory = estimate_memory(resolved, backend, compute_capability)
    if backend == "cpu":
        return memory
    training = Training(resolved, compute_capability, multiprocessors)
    replayed = training.replay(allocator)
    if replayed.out_of_memory is not None:
        replayed = training.replay(allocator.unlimited())
    return with_blocks(memory, replayed, allocator, compute_capability)


class Training:
    """A recipe's training: one walk, and any number of replays."""

    def __init__(
        self, resolved: ResolvedRecipe, compute_capability: str | None = None, multiprocessors: int | None = None
    ) -> None:
        """Walk the step of ``resolved`` for a GPU's ``compute_capability`` and number of ``multiprocessors``.

        Both are as in `Device`. Buffers of reductions depend on both, and are left out if one is not known.

        Raises:
            UserError: the model lacks the target modules, or no kernel runs the combination.
        """
        self.resolved = resolved
        self.workspace_bytes = workspaces(compute_capability).bytes // HANDLES
        setup, values = Setup(resolved, "cuda", compute_capability), Values(resolved)
        gpu = multiprocessors_of(compute_capability, multiprocessors)
        self.micro_batches = [MicroBatch(walk(setup, accumulating=False), values, gpu)]
        more = min(resolved.recipe.gradient_accumulation, MICRO_BATCHES) - 1
        if more:
            self.micro_batches += [MicroBatch(walk(setup, accumulating=True), values, gpu)] * more
        self._sizes = setup, values, gpu

    @cached_property
    def evaluation(self) -> MicroBatch:
        """The evaluation of one batch."""
        setup, values, gpu = self._sizes
        return MicroBatch(evaluation_walk(setup), values, gpu)

    def replay(self, settings: AllocatorSettings = DEFAULTS, *, capacity: int | None = None) -> Replayed:
        """Return what the allocator counts on a device that has ``capacity`` bytes to give; None for any number.

        With a capacity, memory may also run out in an evaluation after the steps, or in the step that follows it: an
        evaluation leaves other gaps. It changes nothing else.
        """
        return Replay(self, CachingAllocator(settings, capacity=capacity)).run()


class MicroBatch:
    """A walk with the recipe's own sizes."""

    def __init__(self, walked: Walk, values: Values, gpu: Multiprocessors | None) -> None:
        self.events = walked.sized(values, gpu)
        self.marks: list[tuple[int, Mark | None]] = [*walked.marks, (len(self.events), None)]
        self.gradients = walked.gradients
        self.outputs = walked.outputs


class _Full(Exception):  # noqa: N818 - it ends a replay as StopIteration ends a loop
    def __init__(self, size: int) -> None:
        self.size = size


class Replay:
    """One replay of a training, on one allocator."""

    def __init__(self, training: Training, allocator: CachingAllocator) -> None:
        self._training = training
        self._allocator = allocator
        self._keys = 0
        self._phase = "loaded"
        self._peaks: dict[str, int] = {}
        self._threads_with_workspace: set[str] = set()
        self._outputs: list[int] = []

    def run(self) -> Replayed:
        """Return what the allocator counts over the steps."""
        failure = None
        try:
            self._load()
            self._allocator.peak_reserved = self._allocator.reserved
            self._peaks["adapted"] = self._allocator.allocated
            for number in range(STEPS):
                if number == 1:
                    self._peaks = {"adapted": self._peaks["adapted"]}
                before = self._allocator.exchanges
                self._step(first=number == 0)
                if number and self._allocator.exchanges == before:
                    break  # all blocks of the step are free again, in the same segments: later steps are the same
        except _Full as full:
            failure = OutOfMemory(self._phase, full.size)
        most = max(self._peaks.values(), default=self._allocator.peak_allocated)
        reserved, peaks = self._allocator.peak_reserved, dict(self._peaks)
        if failure is None and self._allocator.capacity is not None:
            failure = self._evaluate()
        return Replayed(most, reserved, peaks, failure)

    def _evaluate(self) -> OutOfMemory | None:
        """Evaluate, and train another step; return the request that found no room."""
        self._phase = "evaluation"
        try:
            before = self._allocator.exchanges
            self._micro_batch(self._training.evaluation)
            if self._allocator.exchanges != before:  # else the next step finds what the last one left
                self._step(first=False)
        except _Full as full:
            return OutOfMemory(self._phase, full.size)
        return None

    def _load(self) -> None:
        """Load and prepare the model, and empty the cache, as `lorabench run` does before its steps."""
        for block, size in loading(self._training.resolved):
            self._keys = max(self._keys, block)
            if (block, size) == EMPTY_CACHE:
                self._allocator.empty_cache()
            elif size == 0:
                self._allocator.free(block)
            elif not self._allocator.allocate(block, size):
                raise _Full(size)
        if self._states_before_steps:
            self._make_states()
        self._allocator.empty_cache()

    @property
    def _states_before_steps(self) -> bool:
        return OPTIMIZERS[self._training.resolved.recipe.optim].states_when_made

    def _make_states(self) -> None:
        for size in self._state_blocks():
            self._hold(size)

    def _hold(self, size: int) -> int:
        """Allocate a block of ``size`` bytes, and return its key."""
        self._keys += 1
        if not self._allocator.allocate(self._keys, size):
            raise _Full(size)
        return self._keys

    def _step(self, *, first: bool) -> None:
        gradients: list[int] = []
        for walked in self._training.micro_batches:
            gradients += self._micro_batch(walked)
        self._begin("optimizer")
        self._clip()
        if first and not self._states_before_steps:
            self._make_states()
        self._temporaries()
        self._end_phase()
        for key in gradients:
            self._allocator.free(key)

    def _clip(self) -> None:
        """Compute the gradients' norms, which are kept until their total is known."""
        norms: list[int] = []
        for buffer, sizes in clipping_buffers(self._training.resolved.trained_tensors):
            key = self._hold(buffer)
            norms += map(self._hold, sizes)
            self._allocator.free(key)
        for key in norms:
            self._allocator.free(key)

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
        self._keys += len(walked.events)
        allocate, free = self._allocator.allocate, self._allocator.free
        start = 0
        for end, mark in walked.marks:
            for block, size in walked.events[start:end]:
                if block == PASSING:
                    if size:
                        free(self._hold(size))
                elif size == 0:
                    free(base + block)
                elif not allocate(base + block, size):
                    raise _Full(size)
            start = end
            if mark == "backward":
                for key in self._outputs:
                    free(key)
                self._outputs = [base + block for block in walked.outputs]
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

    def _state_blocks(self) -> Iterator[int]:
        optimizer = OPTIMIZERS[self._training.resolved.recipe.optim]
        for state in optimizer.states:
            yield from shared_blocks(state, self._training.resolved.trained_tensors)
        for tensor in one_by_one(self._training.resolved.trained_tensors):
            for state in optimizer.states:
                yield from state.blocks(tensor, "cuda")

    def _temporaries(self) -> None:
        resolved = self._training.resolved
        tensors = list(one_by_one(resolved.trained_tensors))
        for sizes in OPTIMIZERS[resolved.recipe.optim].temporaries(tensors, "cuda"):
            keys = [self._hold(size) for size in sizes if size]
            for key in keys:
                self._allocator.free(key)
