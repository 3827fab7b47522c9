"""The operations of a step, counted while the closed form of memory runs it.

`_CountingTape` replaces the tape of the closed form. It sees every operation with its inputs and results. An operation
without `Work` is memory-bound: its time depends on the bytes that it reads and writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from lorabench.estimator.closed_form.autograd import (
    ITEMSIZES,
    Backward,
    Gradients,
    Leaf,
    Node,
    Tape,
    Tensor,
)
from lorabench.estimator.closed_form.forms import Setup, with_chunks
from lorabench.estimator.closed_form.ledger import SilentLedger
from lorabench.estimator.closed_form.scans import FEW_CHUNKS, chunks_beyond_few
from lorabench.estimator.closed_form.sizes import Monomial
from lorabench.estimator.closed_form.step import peak_candidates
from lorabench.estimator.closed_form.work import Dequantisation, Work
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.recipes.resolved import ResolvedRecipe

MOST_LISTS = 256
"""Size of the cache of lists of operations; each takes some 30 kB."""

NESTED_LAUNCHES = 2
"""Extra launches per dequantisation on a GPU under double quantisation: bitsandbytes dequantises the absmax values, and
adds their offset. The tensors are so small that only the launches cost time."""
LaunchPhase = Literal["forward", "backward", "optimizer"]
"""The phase in which the host launches operations; recomputation counts as forward."""
Kernel = Literal["arithmetic", "activation", "tanh", "rows", "random"]
"""Kinds of memory-bound kernels: sums, products and copies; activations; tanh; norms and softmax; dropout's random
numbers. On a GPU memory bounds all of them, on a CPU it does not."""
KERNELS: dict[str, tuple[Kernel, Kernel]] = {
    "activation": ("activation", "activation"),
    "tanh": ("tanh", "arithmetic"),
    "rsqrt": ("tanh", "arithmetic"),
    "softmax": ("rows", "rows"),
    "cross_entropy": ("rows", "rows"),
    "layer_norm": ("rows", "rows"),
    "dropout": ("random", "arithmetic"),
}
"""Name of an operation on the tape → its kernels in forward and backward; all others are ``arithmetic``."""
Sizes = tuple[tuple[Monomial, float], ...]
"""Pairs of a monomial and its coefficient in bytes."""


class Operation(NamedTuple):
    """One kernel: a matmul, attention, a fused loss, a dequantisation, or a memory-bound kernel."""

    work: Work | None
    """None for a memory-bound kernel."""
    traffic: Sizes
    """Bytes that a memory-bound kernel reads and writes; empty for others, whose `work` determines them."""
    logits: bool = False
    """Whether a memory-bound kernel runs on logits."""
    kernel: Kernel = "arithmetic"
    """The kind of a memory-bound kernel."""


class MicroBatch(NamedTuple):
    """The operations of one forward and backward pass."""

    operations: tuple[tuple[Operation, int], ...]
    """Pairs of an operation and its count."""
    launches: dict[LaunchPhase, int]
    """Number of operations that the host launches in forward and in backward."""


def micro_batch_operations(resolved: ResolvedRecipe, backend: Backend = "cuda") -> MicroBatch:
    """Return the operations of one forward and backward pass of the recipe.

    Batch size, length and rank are left open: extents and bytes are multiples of monomials.

    Raises:
        UserError: the combination has no closed form.
    """
    return _operations(Setup(resolved, backend))


@lru_cache(MOST_LISTS)
def _operations(setup: Setup) -> MicroBatch:
    beyond = chunks_beyond_few(setup.resolved)
    if beyond > 1:
        few, more = (_operations(with_chunks(setup, FEW_CHUNKS + one)) for one in (0, 1))
        return _grown(few, more, beyond)
    quantization = setup.resolved.recipe.quantization
    nested = quantization is not None and quantization.double_quant and setup.backend == "cuda"
    tape = _CountingTape(nested_launches=NESTED_LAUNCHES if nested else 0)
    peak_candidates(setup.resolved, setup.backend, tape=tape)
    return MicroBatch(tuple(tape.counts.items()), tape.launches)


def _grown(few: MicroBatch, more: MicroBatch, times: int) -> MicroBatch:
    """Return the operations with ``times`` as many chunks more than ``few`` as ``more`` has."""
    counts, longer = dict(few.operations), dict(more.operations)
    operations = {each: counts.get(each, 0) + times * (longer[each] - counts.get(each, 0)) for each in longer}
    launches = {phase: n + times * (more.launches[phase] - n) for phase, n in few.launches.items()}
    return MicroBatch(tuple(operations.items()), launches)


class _CountingTape(Tape):
    """A tape that counts operations. A tensor made outside of any operation counts with the next operation."""

    def __init__(self, *, nested_launches: int = 0) -> None:
        super().__init__(SilentLedger())
        self._nested_launches = nested_launches
        self.counts: Counter[Operation] = Counter()
        self.launches: dict[LaunchPhase, int] = {"forward": 0, "backward": 0}
        self._phase: LaunchPhase = "forward"
        self._times = 0
        """Number of layers for which the node in backward stands; 0 in forward."""
        self._made: list[Tensor] = []
        self._counted_as_work = False
        self._over_logits = False

    # Work

    @contextmanager
    def _working(self, work: Work) -> Iterator[None]:
        assert not self._counted_as_work
        self._count(Operation(work, ()))
        self._counted_as_work = True
        try:
            yield
        finally:
            self._counted_as_work = False

    def working(self, work: Work) -> Any:
        return self._working(work)

    def new(self, *args: Any, **options: Any) -> Tensor:
        tensor = super().new(*args, **options)
        if not self._counted_as_work:
            # Keep only the sizes: a reference to the tensor would keep its block alive.
            self._made.append(Tensor(None, tensor.tokens, tensor.features, tensor.dtype, times=tensor.times))
            self._over_logits |= tensor.block is not None and tensor.block.component == "logits"
        return tensor

    # Running

    def record(self, operation: str, inputs: tuple[Tensor, ...], *args: Any, **options: Any) -> Tensor:
        try:
            return super().record(operation, inputs, *args, **options)
        finally:
            if self._made:
                self._memory_bound((*inputs, *self._take()), _kernels(operation)[0])

    def _run(self, node: Node, waiting: dict[Node, dict[int, Tensor]], queue: list[tuple[int, Node]]) -> None:
        self._phase, self._times = "backward", node.repeat
        node.backward = self._counted(node)
        super()._run(node, waiting, queue)
        for made in self._take():  # casts of gradients to the dtype of their inputs, and copies
            self._memory_bound((made, made))

    def _counted(self, node: Node) -> Backward:
        backward, kernel = node.backward, _kernels(node.operation)[1]

        def counted(arrived: Any, saved: list[Tensor]) -> Gradients:
            self._made.clear()  # tensors of a recomputation that stopped early
            gradients = backward(arrived, saved)
            made = self._take()
            if made:
                # Each kernel reads the incoming gradient. The saved tensors are divided among the kernels.
                read = arrived if isinstance(arrived, list) else [arrived]
                for tensor in made:
                    self._memory_bound((*read, tensor), kernel, saved, 1 / len(made))
            return gradients

        return counted

    @contextmanager
    def running_again(self, repeat: int) -> Iterator[None]:
        self._phase = "forward"
        try:
            with super().running_again(repeat):
                yield
        finally:
            self._phase = "backward"

    def sum(self, first: Tensor, second: Tensor) -> Tensor:
        result = super().sum(first, second)
        self._made.clear()
        self._memory_bound((first, second, second))
        return result

    def _gather(self, leaf: Leaf, gradient: Tensor, repeat: int) -> None:
        if leaf.accumulating or leaf.grad is not None:
            self._memory_bound((gradient, gradient, gradient))
            super()._gather(leaf, gradient, repeat)
            self._made.clear()
        else:
            super()._gather(leaf, gradient, repeat)

    # Counting

    def _take(self) -> list[Tensor]:
        made, self._made = self._made, []
        return made

    def _memory_bound(
        self,
        tensors: Iterable[Tensor],
        kernel: Kernel = "arithmetic",
        shared: Iterable[Tensor] = (),
        share: float = 1.0,
    ) -> None:
        """Count a memory-bound ``kernel`` that reads or writes each of ``tensors``, and ``share`` of ``shared``."""
        sizes: dict[Monomial, float] = {}
        for each, part in ((tensors, 1.0), (shared, share)):
            for tensor in each:
                monomial = tensor.tokens * tensor.times
                bytes_ = part * tensor.features * ITEMSIZES[tensor.dtype]
                sizes[monomial] = sizes.get(monomial, 0.0) + bytes_
        self._count(Operation(None, tuple(sorted(sizes.items())), self._over_logits, kernel))
        self._made, self._over_logits = [], False

    def _count(self, operation: Operation) -> None:
        times = self._times or self.repeat
        self.counts[operation] += times
        nested = self._nested_launches if isinstance(operation.work, Dequantisation) else 0
        self.launches[self._phase] += times * (1 + nested)


def _kernels(operation: str) -> tuple[Kernel, Kernel]:
    """Return the kinds of ``operation``'s kernels in forward and in backward."""
    return KERNELS.get(operation, ("arithmetic", "arithmetic"))
