"""The allocations and frees of one training step, in order, for a replay of the caching allocator.

The step is that of `step`, but each layer runs by itself, since the position of a block depends on all earlier
allocations. Batch size, length and rank are left open, so one walk serves all recipes of a `Setup` whose fused losses
have as many chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Literal, NamedTuple

from msgspec.structs import replace

from lorabench.estimator.closed_form.autograd import ITEMSIZES, Node, Tape, Tensor
from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.ledger import Block, SilentLedger
from lorabench.estimator.closed_form.masks import Masks, every_layer, layers_with_window
from lorabench.estimator.closed_form.repetition import OUTSIDE, Part, Pattern, Repetition, find_pattern, repeat
from lorabench.estimator.closed_form.sizes import CHUNK, LAST_CHUNK, Monomial, Values
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


class Walk:
    """One micro-batch, and the events at which its phases begin."""

    def __init__(
        self,
        events: list[Event],
        marks: list[tuple[int, Mark]],
        gradients: list[int],
        outputs: list[int],
        repetition: Repetition | None = None,
    ) -> None:
        self._events = events
        """The events of the layers that ran: of all, or of the few that ``repetition`` repeats."""
        self.marks = marks
        """The number of all layers' events before each mark, and the mark."""
        self.gradients = gradients
        """The blocks of all layers' gradients, which stay until the next step begins."""
        self.outputs = outputs
        """The blocks that the training loop keeps until the next forward pass ends."""
        self.repetition = repetition
        blocks = [block for block, _, _ in events]
        self.blocks = blocks if repetition is None else repetition.all_events(blocks)
        """The block of each event of all layers; `PASSING` for a sum."""

    def sizes(self, values: Values, gpu: Multiprocessors | None) -> list[int]:
        """Return the bytes of each event of all layers, 0 for a free; torch allocates at least one byte.

        A sum has those of its buffer, 0 if it needs none or the ``gpu`` is unknown.
        """
        sizes = [
            0
            if size is None
            else _buffer(n, size, values, gpu)
            if isinstance(size, RowSum)
            else int(n * values[size]) or 1
            for _, n, size in self._events
        ]
        return sizes if self.repetition is None else self.repetition.all_sizes(sizes)


def _buffer(n: int, rows: RowSum, values: Values, gpu: Multiprocessors | None) -> int:
    return 0 if gpu is None else reduction_buffer(n * values[rows.times], rows.outputs, rows.itemsize, gpu)


def chunks_of(resolved: ResolvedRecipe) -> int:
    """Return the number of chunks in which the recipe computes its fused loss; 0 if it has another loss."""
    spec, recipe = resolved.spec, resolved.recipe
    loss = recipe.fused_loss
    if loss is None:
        return 0
    return loss.chunk_count(loss.divided(recipe.batch_size, recipe.seq_len), spec.vocab_size, spec.hidden_size)


def rows_of(chunks: int) -> list[Monomial]:
    """Return the tokens of each of ``chunks`` chunks."""
    return [CHUNK] * (chunks - 1) + [LAST_CHUNK]


@lru_cache(MOST_WALKS)
def walk(setup: Setup, chunks: int, *, accumulating: bool) -> Walk:
    """Return one micro-batch on CUDA, from its batch to the end of backward.

    ``chunks``: as `chunks_of` returns it. ``accumulating``: the gradients exist already, from an earlier micro-batch.

    Raises:
        UserError: the model lacks the target modules, or no kernel runs the combination.
    """
    resolved = setup.resolved.replaced(gradient_accumulation=2 if accumulating else 1)
    capability = setup.compute_capability
    if resolved.recipe.keep_outputs or resolved.recipe.keeps_inputs:
        # What each layer leaves for the loop, or for the graph, is no block of a repeated part.
        return walk_every_layer(resolved, capability, chunks)
    return _short_walk(resolved, capability, chunks) or walk_every_layer(resolved, capability, chunks)


@lru_cache(MOST_WALKS)
def evaluation_walk(setup: Setup, chunks: int) -> Walk:
    """Return the evaluation of one batch on CUDA. ``chunks``: as `chunks_of` returns it.

    Raises:
        UserError: as `walk`.
    """
    resolved, capability = setup.resolved, setup.compute_capability
    return _short_walk(resolved, capability, chunks, walk_evaluation) or walk_every_layer(
        resolved, capability, chunks, walk_evaluation
    )


Run = Callable[[ResolvedRecipe, str | None, Tape, LayerOrder, Sequence[Monomial]], None]
"""`walk_layers` or `walk_evaluation`."""


def walk_every_layer(
    resolved: ResolvedRecipe, compute_capability: str | None, chunks: int, run: Run = walk_layers
) -> Walk:
    """Return one micro-batch of ``resolved``, or its evaluation, from a run of all layers. ``chunks``: as in `walk`."""
    tape = WalkingTape(EventLedger())
    run(resolved, compute_capability, tape, every_layer, rows_of(chunks))
    outputs = [block.number for block in tape.kept_blocks()]
    return Walk([*tape.ledger.events], tape.ledger.marks, tape.gradient_blocks(), outputs)


def _short_walk(
    resolved: ResolvedRecipe, compute_capability: str | None, chunks: int, run: Run = walk_layers
) -> Walk | None:
    """Return `walk_every_layer` from a run of a few layers; None if the others do not repeat them."""
    spec = resolved.spec
    pattern = find_pattern(_kinds(spec))
    if pattern is None:
        return None
    tape = WalkingTape(EventLedger(), pattern.starts)
    run(resolved, compute_capability, tape, partial(_few_layers, pattern), rows_of(chunks))
    tape.note_end_of_layers()
    events = [*tape.ledger.events]  # those that follow are of the tape's end
    repetition = repeat(tape.parts, events, pattern.blocks + 2, pattern.few)
    if repetition is None:
        return None
    marks = [(repetition.moment(moment), mark) for moment, mark in tape.ledger.marks]
    known = [(moment, mark) for moment, mark in marks if moment is not None]
    gradients = repetition.all_blocks(tape.gradient_blocks())
    return Walk(events, known, gradients, [], repetition) if len(known) == len(marks) else None


def _kinds(spec: ModelSpec) -> list[tuple[int, bool]]:
    """Return for each layer what makes it unlike others: its tensors, and whether it has a window."""
    kinds: list[Layers] = []
    found: list[tuple[int, bool]] = []
    windowed = iter(layers_with_window(spec))
    for group in spec.layers:
        one = replace(group, count=1)
        if one not in kinds:
            kinds.append(one)
        found += [(kinds.index(one), next(windowed)) for _ in range(group.count)]
    return found


def _few_layers(pattern: Pattern, spec: ModelSpec, masks: Masks) -> Iterator[tuple[Layers, int, bool]]:
    every = [*every_layer(spec, masks)]
    return iter([every[layer] for layer in pattern.kept(len(every))])


class EventLedger(SilentLedger):
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

    def __init__(self, ledger: EventLedger, starts: Sequence[int] | None = None) -> None:
        """Note the layers of ``starts`` only, each with those after it; all without."""
        super().__init__(ledger)
        self._starts = starts
        self._layers = 0
        self._threads_with_workspace: set[bool] = set()
        self.parts = [Part(OUTSIDE, "before the layers", 0)]
        self._sequences: list[int] = []
        """The number of graph nodes before each layer."""
        self._last_sequence = 0
        self._after_layers: Part | None = None

    @contextmanager
    def repeated(self, copies: int) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Run one layer, which stands for itself only."""
        if self._starts is None or self._layers in self._starts:
            self.parts.append(Part(len(self._sequences), "forward", len(self.ledger.events)))
            self._sequences.append(self._sequence)
        self._layers += 1
        with super().repeated(copies) as finish:
            yield finish
        self._last_sequence = self._sequence
        self._after_layers = Part(OUTSIDE, "between forward and backward", len(self.ledger.events))

    def note_end_of_layers(self) -> None:
        """Note that what follows the last layer's forward pass is outside the layers."""
        if self._after_layers is not None:
            self.parts.append(self._after_layers)
            self._after_layers = None

    def _run(self, node: Node, waiting: dict[Node, dict[int, Tensor]], queue: list[tuple[int, Node]]) -> None:
        self.note_end_of_layers()
        while self._sequences and self._sequences[-1] < node.sequence <= self._last_sequence:
            self._last_sequence = self._sequences.pop()
            self.parts.append(Part(len(self._sequences), "backward", len(self.ledger.events)))
        super()._run(node, waiting, queue)

    @contextmanager
    def working(self, work: Work) -> Iterator[None]:
        """Run ``work``, and mark the workspace of its thread if it is the thread's first matmul.

        An evaluation follows steps, so its thread has one.
        """
        yield
        backward = self.ledger.phase == "backward"
        first = isinstance(work, Matmul) and backward not in self._threads_with_workspace
        if first and not self.evaluating:
            self._threads_with_workspace.add(backward)
            self.ledger.marks.append((len(self.ledger.events), "workspace"))

    def summed(self, rows: Tensor, total: Tensor) -> None:
        """Note the sum, whose kernel may need a buffer."""
        each = RowSum(rows.tokens, total.features, ITEMSIZES[total.dtype])
        self.ledger.events.append((PASSING, rows.features // total.features, each))

    def gradient_blocks(self) -> list[int]:
        """Return the numbers of the gradients' blocks, which are kept."""
        return [gradient.block.number for gradient in self._gradients if gradient.block is not None]
