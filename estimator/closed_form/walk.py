"""The allocations and frees of one training step, in the order in which the caching allocator gets them.

It is the step of `step` on sizes, but each layer runs by itself, since the position of a block depends on all earlier
allocations. Batch size, length and rank are left open, so one walk serves all recipes of a `Setup`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, NamedTuple

from lorabench.estimator.closed_form.autograd import ITEMSIZES, Tape, Tensor
from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.ledger import Block, Ledger
from lorabench.estimator.closed_form.sizes import Monomial, Values
from lorabench.estimator.closed_form.step import walk_layers
from lorabench.estimator.closed_form.work import Matmul, Work
from lorabench.estimator.memory.reductions import Multiprocessors, reduction_buffer


class RowSum(NamedTuple):
    """A sum of n · ``times`` rows of ``outputs`` elements, whose kernel may need a buffer while it runs."""

    times: Monomial
    outputs: int
    itemsize: int


Event = tuple[int, int, Monomial | RowSum | None]
"""(block, n, monomial) allocates n · monomial bytes; (block, 0, None) frees. Blocks are numbered in the order in which
they are allocated. (`PASSING`, n, sum) allocates the buffer of a sum and frees it."""
PASSING = -1
"""The number of blocks that are freed immediately."""
Mark = Literal["forward", "backward", "optimizer", "workspace"]
"""The phase that begins; or the first matmul of a thread, which allocates its cuBLAS workspace."""

MOST_WALKS = 8
"""Walks kept: one of 80 layers takes some 10 MB."""


class Walk(NamedTuple):
    """One micro-batch, and the events at which its phases begin."""

    events: list[Event]
    marks: list[tuple[int, Mark]]
    """The number of events before each mark, and the mark."""
    gradients: list[int]
    """The blocks of gradients, which stay until the next step begins."""

    def sized(self, values: Values, gpu: Multiprocessors | None) -> list[tuple[int, int]]:
        """Return the events as (block, bytes), 0 bytes for a free; torch allocates at least one byte.

        A sum is (`PASSING`, bytes of its buffer), 0 if it needs none or the ``gpu`` is unknown.
        """
        return [
            (block, 0)
            if size is None
            else (block, _buffer(n, size, values, gpu))
            if isinstance(size, RowSum)
            else (block, int(n * values[size]) or 1)
            for block, n, size in self.events
        ]


def _buffer(n: int, rows: RowSum, values: Values, gpu: Multiprocessors | None) -> int:
    return 0 if gpu is None else reduction_buffer(n * values[rows.times], rows.outputs, rows.itemsize, gpu)


@lru_cache(MOST_WALKS)
def walk(setup: Setup, *, accumulating: bool) -> Walk:
    """Return one micro-batch on CUDA, from its batch to the end of backward.

    ``accumulating``: the gradients are there already, from an earlier micro-batch.

    Raises:
        UserError: target modules that the model does not have, or a combination that no kernel runs.
    """
    ledger = _EventLedger()
    tape = _WalkingTape(ledger)
    resolved = setup.resolved.replaced(gradient_accumulation=2 if accumulating else 1)
    walk_layers(resolved, setup.compute_capability, tape)
    return Walk([*ledger.events], ledger.marks, tape.gradient_blocks())


class _EventLedger(Ledger):
    """A ledger that writes down each allocation and free."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks = 0
        self.events: list[Event] = []
        self.marks: list[tuple[int, Mark]] = []

    def allocate(self, block: Block) -> None:
        """Number ``block`` and note its bytes."""
        block.number = self._blocks
        self._blocks += 1
        self.events.append((block.number, block.bytes, block.slot[1]))

    def release(self, block: Block) -> None:
        """Note that ``block`` is freed."""
        self.events.append((block.number, 0, None))

    def mark(self) -> None:
        """Do nothing: every event is kept."""

    def enter(self, phase: str) -> None:
        """Note that ``phase`` begins."""
        self.phase = phase
        if phase in ("forward", "backward", "optimizer"):
            self.marks.append((len(self.events), phase))  # type: ignore[arg-type]  # one of these


class _WalkingTape(Tape):
    """A tape that notes the first matmul of each thread: forward runs in one, backward in another."""

    ledger: _EventLedger

    def __init__(self, ledger: _EventLedger) -> None:
        super().__init__(ledger)
        self._threads_with_workspace: set[bool] = set()

    @contextmanager
    def working(self, work: Work) -> Iterator[None]:
        """Run ``work``, and mark the workspace of its thread if it is the thread's first matmul."""
        yield
        backward = self.ledger.phase == "backward"
        if isinstance(work, Matmul) and backward not in self._threads_with_workspace:
            self._threads_with_workspace.add(backward)
            self.ledger.marks.append((len(self.ledger.events), "workspace"))

    def summed(self, rows: Tensor, total: Tensor) -> None:
        """Note the sum, whose kernel may need a buffer."""
        each = RowSum(rows.tokens, total.features, ITEMSIZES[total.dtype])
        self.ledger.events.append((PASSING, rows.features // total.features, each))

    def gradient_blocks(self) -> list[int]:
        """Return the numbers of the gradients' blocks, which are kept."""
        return [gradient.block.number for gradient in self._gradients if gradient.block is not None]
