"""The allocations and frees of one training step, in order, for a replay of the caching allocator.

The step is that of `step`, but each layer runs by itself, since the position of a block depends on all earlier
allocations. Batch size, length and rank are left open, so one walk serves all recipes of a `Setup`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Literal, NamedTuple

from lorabench.estimator.closed_form.autograd import ITEMSIZES, Node, Tape, Tensor
from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.ledger import Block, Ledger
from lorabench.estimator.closed_form.masks import Masks, every_layer, layers_with_window
from lorabench.estimator.closed_form.repetition import FEW, OUTSIDE, Part, Repetition, repeat
from lorabench.estimator.closed_form.sizes import Monomial, Values
from lorabench.estimator.closed_form.step import LayerOrder, walk_evaluation, walk_layers
from lorabench.estimator.closed_form.work import Matmul, Work
from lorabench.estimator.memory.reductions import Multiprocessors, reduction_buffer
from lorabench.estimator.models.spec import Layers, ModelSpec
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class RowSum(NamedTuple):
    """A sum of n · ``times`` rows of ``outputs`` elements, whose kernel may need a buffer while it runs."""

    times: Monomial
    outputs: int
    itemsize: int


Event = tuple[int, int, Monomial | RowSum | None]
"""(block, n, monomial) allocates n · monomial bytes; (block, 0, None) frees. Blocks are numbered in
the order of their allocation. (`PASSING`, n, sum) allocates the buffer of a sum and frees it."""
PASSING = -1
"""The number of blocks that are freed immediately."""
Mark = Literal["forward", "backward", "optimizer", "workspace"]
"""The phase that begins; or the first matmul of a thread, which allocates its cuBLAS workspace."""

MOST_WALKS = 8
"""Walks kept: one of 80 layers takes some 10 MB."""


class Walk(NamedTuple):
    """One micro-batch, and the events at which its phases begin."""

    events: list[Event]
    """The events of the layers that ran: of all, or of the `FEW` that ``repetition`` repeats."""
    marks: list[tuple[int, Mark]]
    """The number of all layers' events before each mark, and the mark."""
    gradients: list[int]
    """The blocks of all layers' gradients, which stay until the next step begins."""
    outputs: list[int]
    """The blocks that the training loop keeps until the next forward pass ends."""
    repetition: Repetition | None = None

    def sized(self, values: Values, gpu: Multiprocessors | None) -> list[tuple[int, int]]:
        """Return all layers' events as (block, bytes), 0 bytes for a free; torch allocates at least one byte.

        A sum is (`PASSING`, bytes of its buffer), 0 if it needs none or the ``gpu`` is unknown.
        """
        sized = [
            (block, 0)
            if size is None
            else (block, _buffer(n, size, values, gpu))
            if isinstance(size, RowSum)
            else (block, int(n * values[size]) or 1)
            for block, n, size in self.events
        ]
        return sized if self.repetition is None else self.repetition.all_events(sized)


def _buffer(n: int, rows: RowSum, values: Values, gpu: Multiprocessors | None) -> int:
    return 0 if gpu is None else reduction_buffer(n * values[rows.times], rows.outputs, rows.itemsize, gpu)


@lru_cache(MOST_WALKS)
def walk(setup: Setup, *, accumulating: bool) -> Walk:
    """Return one micro-batch on CUDA, from its batch to the end of backward.

    ``accumulating``: the gradients exist already, from an earlier micro-batch.

    Raises:
        UserError: the model lacks the target modules, or no kernel runs the combination.
    """
    resolved = setup.resolved.replaced(gradient_accumulation=2 if accumulating else 1)
    return _short_walk(resolved, setup.compute_capability) or walk_every_layer(resolved, setup.compute_capability)


@lru_cache(MOST_WALKS)
def evaluation_walk(setup: Setup) -> Walk:
    """Return the evaluation of one batch on CUDA.

    Raises:
        UserError: as `walk`.
    """
    ledger = EventLedger()
    walk_evaluation(setup.resolved, setup.compute_capability, WalkingTape(ledger))
    return Walk([*ledger.events], [], [], [])


def walk_every_layer(resolved: ResolvedRecipe, compute_capability: str | None) -> Walk:
    """Return one micro-batch of ``resolved`` from a run of all layers."""
    ledger, tape = _run(resolved, compute_capability, every_layer)
    outputs = [block.number for block in tape.kept_blocks()]
    return Walk([*ledger.events], ledger.marks, tape.gradient_blocks(), outputs)


def _short_walk(resolved: ResolvedRecipe, compute_capability: str | None) -> Walk | None:
    """Return one micro-batch from a run of a few layers; None if the others do not repeat them."""
    spec = resolved.spec
    if spec.num_hidden_layers <= FEW or len(spec.layers) > 1 or len(set(layers_with_window(spec))) > 1:
        return None
    if resolved.recipe.keep_outputs:
        return None  # what each layer leaves for the loop is no block of a repeated part
    ledger, tape = _run(resolved, compute_capability, _few_layers)
    events = [*ledger.events]  # those that follow are of the tape's end
    repetition = repeat(tape.parts, events, spec.num_hidden_layers)
    if repetition is None:
        return None
    marks = [(repetition.moment(moment), mark) for moment, mark in ledger.marks]
    known = [(moment, mark) for moment, mark in marks if moment is not None]
    gradients = repetition.all_blocks(tape.gradient_blocks())
    return Walk(events, known, gradients, [], repetition) if len(known) == len(marks) else None


def _few_layers(spec: ModelSpec, masks: Masks) -> Iterator[tuple[Layers, int, bool]]:
    return islice(every_layer(spec, masks), FEW)


def _run(
    resolved: ResolvedRecipe, compute_capability: str | None, layers: LayerOrder
) -> tuple[EventLedger, WalkingTape]:
    ledger = EventLedger()
    tape = WalkingTape(ledger)
    walk_layers(resolved, compute_capability, tape, layers)
    return ledger, tape


class EventLedger(Ledger):
    """A ledger that records each allocation and free."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 0
        self.events: list[Event] = []
        self.marks: list[tuple[int, Mark]] = []

    def allocate(self, block: Block) -> None:
        """Number ``block`` and note its bytes."""
        block.number = self.blocks
        self.blocks += 1
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


class WalkingTape(Tape):
    """A tape that notes where each layer begins in forward and in backward, and the first matmul of each thread.

    Forward runs in one thread, backward in another.
    """

    ledger: EventLedger

    def __init__(self, ledger: EventLedger) -> None:
        super().__init__(ledger)
        self._threads_with_workspace: set[bool] = set()
        self.parts = [Part(OUTSIDE, "before the layers", 0)]
        self._sequences: list[int] = []
        """The number of graph nodes before each layer."""
        self._last_sequence = 0
        self._after_layers: Part | None = None

    @contextmanager
    def repeated(self, copies: int) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Run one layer, which stands for itself only."""
        self.parts.append(Part(len(self._sequences), "forward", len(self.ledger.events)))
        self._sequences.append(self._sequence)
        with super().repeated(copies) as finish:
            yield finish
        self._last_sequence = self._sequence
        self._after_layers = Part(OUTSIDE, "between forward and backward", len(self.ledger.events))

    def _run(self, node: Node, waiting: dict[Node, dict[int, Tensor]], queue: list[tuple[int, Node]]) -> None:
        if self._after_layers is not None:
            self.parts.append(self._after_layers)
            self._after_layers = None
        while self._sequences and self._sequences[-1] < node.sequence <= self._last_sequence:
            self._last_sequence = self._sequences.pop()
            self.parts.append(Part(len(self._sequences), "backward", len(self.ledger.events)))
        super()._run(node, waiting, queue)

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
