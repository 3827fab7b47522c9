"""Tensors without contents, and an autograd that keeps and frees them as torch's does.

As in torch 2.13:

- A node keeps its saved tensors until its backward has run.
- If a tensor gets two gradients, the second is added to the first in place, unless something else refers to the first
  or the first is a view.
- A gradient is cast to the dtype of its tensor.
- The first gradient of a leaf is kept as it is, and later ones are added to it.
- Checkpointing without reentry drops saved tensors in forward. Backward recomputes them when it needs the first one,
  and stops the recomputation at the last one that it needs.
- Reentrant checkpointing records nothing in forward. Backward runs the whole call again, and then a backward pass of
  that call alone. Meanwhile it holds the call's input and output, and the output's gradient.
- Autocast caches its casts of trainable leaves until its context ends.
"""

from __future__ import annotations

import heapq
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol

from lorabench.estimator.closed_form.layout import Layout
from lorabench.estimator.closed_form.ledger import Block, Ledger
from lorabench.estimator.closed_form.sizes import ONE, Monomial
from lorabench.estimator.closed_form.work import Work
from lorabench.estimator.dtypes import ITEMSIZE

ITEMSIZES = {**ITEMSIZE, "int64": 8, "int32": 4, "bool": 1, "uint8": 1, "complex64": 8}
PROMOTED = {("bfloat16", "float16"): "float32", ("float16", "bfloat16"): "float32"}

Gradients = tuple["Tensor | Broadcast | None", ...]
Backward = Callable[[Any, list["Tensor"]], Gradients]
"""Maps the output's gradient (a list if there are several outputs) and the saved tensors to the inputs' gradients; None
for an input that needs none."""


Part = Literal[
    "embedding",
    "rotary tables",
    "attention mask",
    "residual stream",
    "layer",
    "norm",
    "linear",
    "adapter",
    "rotary positions",
    "attention",
    "feed-forward",
    "router",
    "adapted router",
    "experts",
    "adapted experts",
    "loss",
    "fused loss",
]
"""Names for the parts of a model's step."""


class Place(NamedTuple):
    """The place in the model where a tensor is made."""

    part: Part | None
    """None for the inputs of the step."""
    module: str = ""
    """Path of the module inside its layer, such as ``self_attn.q_proj``, if the part has several."""


NOWHERE = Place(None)


def promote(first: str, second: str) -> str:
    """Return the dtype of an operation on two floating dtypes."""
    if first == second:
        return first
    return PROMOTED.get((first, second), "float32")


class Tensor:
    """A tensor of shape (tokens, features): ``features`` elements for each of ``tokens``, such as B·S. A weight has ONE
    token.

    If the features are a multiple of a symbol, ``times`` is that symbol: an adapter's A·x is (B·S, 1 · r). Views share
    their block.
    """

    __slots__ = ("block", "dtype", "features", "is_view", "layout", "leaf", "node", "output", "times", "tokens")

    def __init__(
        self,
        block: Block | None,
        tokens: Monomial,
        features: int,
        dtype: str,
        node: Node | None = None,
        *,
        times: Monomial = ONE,
        leaf: Leaf | None = None,
    ) -> None:
        self.block = block
        self.tokens = tokens
        self.features = features
        self.dtype = dtype
        self.node = node
        self.times = times
        self.leaf = leaf
        self.is_view = False
        """Whether it is a view of another tensor, which lives as long as it. Autograd adds to a gradient that is a view
        out of place."""
        self.output = 0
        """Which of its node's outputs it is."""
        self.layout: Layout | None = None
        """The layout of a gradient; None if it is contiguous."""

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows to it."""
        return self.node is not None or self.leaf is not None

    def view(self, features: int | None = None, node: Node | None = None) -> Tensor:
        """Return a view on the same block."""
        features = self.features if features is None else features
        view = Tensor(self.block, self.tokens, features, self.dtype, node, times=self.times)
        view.is_view = True
        return view

    def passed_on(self) -> Tensor:
        """Return the same tensor for another owner: a gradient that an operation passes on as it is."""
        same = self.without_history()
        same.is_view = self.is_view
        same.layout = self.layout
        return same

    def without_history(self) -> Tensor:
        """Return a tensor of the same shape on the same block, without a node: nodes save these."""
        return Tensor(self.block, self.tokens, self.features, self.dtype, times=self.times)


class Broadcast(NamedTuple):
    """The gradient of a broadcast tensor, before autograd sums it to ``tokens`` and ``features``."""

    gradient: Tensor
    tokens: Monomial
    features: int


class Leaf:
    """A trained weight, or an activation that was set to require a gradient. Its gradients accumulate here.

    ``accumulating``: the gradient exists from an earlier micro-batch, and is persistent. ``holds``: the activation,
    which the graph keeps alive. ``awaited``: number of gradients to come; they are summed before they are accumulated.
    """

    __slots__ = ("accumulating", "awaited", "grad", "holds")

    def __init__(self, *, accumulating: bool = False, holds: Block | None = None) -> None:
        self.grad: Tensor | None = None
        self.accumulating = accumulating
        self.awaited = 1
        self.holds = holds


class Node:
    """The backward function of one operation, with its saved tensors and the receivers of its gradients."""

    __slots__ = ("backward", "edges", "iteration", "operation", "outputs", "place", "repeat", "saved", "sequence")

    def __init__(
        self,
        tape: Tape,
        operation: str,
        backward: Backward,
        inputs: tuple[Tensor, ...],
        saved: tuple[Tensor, ...],
        outputs: int = 1,
    ) -> None:
        self.operation = operation
        self.place = tape.place
        self.backward = backward
        self.outputs = outputs
        self.edges = [(tensor.node, tensor.output, tensor.leaf, tensor.dtype) for tensor in inputs]
        self.repeat = tape.repeat
        self.iteration = tape.iteration
        self.sequence = tape.next_sequence()
        self.saved: Saved = tape.save(saved)


class Saved(Protocol):
    """The saved tensors of a node."""

    def take(self) -> list[Tensor]:
        """Return the saved tensors, recomputed if they were dropped."""


class Kept:
    """Saved tensors that stay in memory."""

    __slots__ = ("tensors",)

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = [tensor.without_history() for tensor in tensors]

    def take(self) -> list[Tensor]:
        """Return them."""
        return [*self.tensors]


class Dropped:
    """Saved tensors that a checkpoint will recompute."""

    __slots__ = ("__weakref__", "checkpoint", "count", "first")

    def __init__(self, checkpoint: Checkpoint, count: int) -> None:
        self.checkpoint = checkpoint
        self.first = len(checkpoint.owners)
        self.count = count
        checkpoint.owners += [weakref.ref(self)] * count

    def take(self) -> list[Tensor]:
        """Return them, after recomputation."""
        return [self.checkpoint.unpack(index) for index in range(self.first, self.first + self.count)]


class StopRecomputation(Exception):  # noqa: N818 - it ends a recomputation as StopIteration ends a loop
    """All saved tensors have been recomputed."""


class Checkpoint:
    """A checkpointed call, with its inputs and the recomputed tensors."""

    __slots__ = ("function", "owners", "recomputed", "tape")

    def __init__(self, tape: Tape, function: Callable[[], object]) -> None:
        self.tape = tape
        self.function = function
        self.owners: list[weakref.ref[Dropped]] = []
        """The node of each saved tensor. If it is gone, its tensor is recomputed but not kept."""
        self.recomputed: dict[int, Tensor] | None = None

    def unpack(self, index: int) -> Tensor:
        """Return saved tensor ``index``. The first call runs the recomputation."""
        if self.recomputed is None:
            self.recomputed = self.tape.recompute(self)
        return self.recomputed.pop(index)


class Tape:
    """Records operations as nodes, and runs them backward."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.repeat = 1
        self.iteration: int | None = None
        """The iteration of the scan's loop that runs; None outside loops."""
        self.left_out: int | None = None
        """The iteration of each loop during which the ledger records no candidates."""
        self.place = NOWHERE
        """The place of the running operation."""
        self.operation = ""
        """The name of the running operation; empty outside operations."""
        self.in_backward = False
        """Whether an operation's backward runs; recomputation is forward."""
        self.autocast: Autocast | None = None
        self.evaluating = False
        """Whether the model runs in eval mode and without gradients, so nothing is recorded."""
        self.outputs: list[Tensor] = []
        """What the training loop keeps until the next forward pass ends."""
        self.leaf_of_outputs: Leaf | None = None
        """The activation whose gradient it keeps too."""
        self._gradients: list[Tensor] = []
        self._sequence = 0
        self._checkpoint: Checkpoint | None = None
        self._recomputing: Checkpoint | None = None
        self._recomputed: dict[int, Tensor] = {}
        self._saves = 0
        self._recording = True
        self._reentrant_calls: list[Callable[[Tensor], Tensor]] = []
        """Kept until backward ends: torch's nodes refer to their calls, and the loss refers to the nodes."""
        self._held: list[Tensor] = []
        """Kept until the running graph is gone: what the contexts of autograd.Functions refer to."""

    def scope(self, part: Part, module: str = "") -> Scope:
        """Return a context: tensors made in it belong to ``part``, and to ``module`` if the part has several."""
        return Scope(self, Place(part, module))

    def iterate(self, iteration: int | None) -> None:
        """Begin an iteration of a loop, or of its backward pass; None: what is outside of loops."""
        self.iteration = iteration
        self.ledger.leaving_out = iteration is not None and iteration == self.left_out

    # Making tensors

    def new(
        self,
        tokens: Monomial,
        features: int,
        dtype: str,
        component: str = "temporaries",
        *,
        times: Monomial = ONE,
        name: str = "",
    ) -> Tensor:
        """Allocate a tensor. ``name``: a name for it, unless it is the result of the running operation."""
        monomial = tokens if times is ONE else tokens * times
        block = Block(self.ledger, monomial, features * ITEMSIZES[dtype], component)
        return Tensor(block, tokens, features, dtype, times=times)

    def like(
        self, tensor: Tensor, dtype: str | None = None, component: str = "temporaries", *, name: str = ""
    ) -> Tensor:
        """Allocate a tensor of the same shape."""
        dtype = dtype or tensor.dtype
        made = self.new(tensor.tokens, tensor.features, dtype, component, times=tensor.times, name=name)
        if tensor.layout is not None:
            made.layout = tensor.layout.dense()
        return made

    def summed(self, rows: Tensor, total: Tensor) -> None:
        """Note that ``rows`` are summed to ``total``, which has the size of one row or of a part of it."""

    def working(self, work: Work) -> AbstractContextManager[object]:
        """Return a context. Tensors made in it are the results of ``work``."""
        return NO_CONTEXT

    def record(
        self,
        operation: str,
        inputs: tuple[Tensor, ...],
        backward: Backward,
        saved: tuple[Tensor, ...],
        compute: Callable[[], Tensor],
        *,
        saved_after: Sequence[Tensor] = (),
        saved_output: bool = False,
    ) -> Tensor:
        """Run ``compute``, the operation of that name, and record how its gradient flows to ``inputs``.

        ``saved`` is saved before the operation runs, as in torch. Outputs are saved after it: the result if
        ``saved_output``, and those of ``saved_after``, a list that ``compute`` may fill.
        """
        outer, self.operation = self.operation, operation
        if self.unrecorded or not any(tensor.requires_grad for tensor in inputs):
            output = compute()
            self.operation = outer
            return output
        node = Node(self, operation, backward, inputs, saved)
        output = compute()
        self.operation = outer
        outputs = (*saved_after, output) if saved_output else tuple(saved_after)
        if outputs:
            node.saved = Both(node.saved, self.save(outputs))
        output.node = node
        return output

    @property
    def unrecorded(self) -> bool:
        """Whether operations run without a record: in an evaluation, or in a reentrant checkpoint's forward."""
        return self.evaluating or not self._recording

    def kept_blocks(self) -> list[Block]:
        """Return the blocks that the training loop keeps until the next forward pass ends."""
        leaf = self.leaf_of_outputs
        kept = [*self.outputs, *([] if leaf is None or leaf.grad is None else [leaf.grad])]
        return [tensor.block for tensor in kept if tensor.block is not None]

    def next_sequence(self) -> int:
        """Return a number larger than all previous ones."""
        self._sequence += 1
        return self._sequence

    def save(self, tensors: tuple[Tensor, ...]) -> Saved:
        """Keep ``tensors`` for backward, or promise to recompute them.

        An operation that saves nothing keeps no reference to the checkpoint, which would keep the checkpoint's input
        alive.
        """
        if not tensors:
            return Kept(())
        if self._recomputing is not None:
            owners = self._recomputing.owners
            for tensor in tensors:
                if owners[self._saves]() is not None:
                    self._recomputed[self._saves] = tensor.without_history()
                _label_saved(tensor)
                self._saves += 1
                if self._saves == len(owners):
                    raise StopRecomputation
            return Kept(tensors)
        if self._checkpoint is not None:
            return Dropped(self._checkpoint, len(tensors))
        for tensor in tensors:
            _label_saved(tensor)
        return Kept(tensors)

    def hold(self, tensor: Tensor) -> None:
        """Keep ``tensor`` as long as the graph: the context of an autograd.Function refers to it.

        Checkpointing does not drop it, since it is none of autograd's saved tensors. A call without a record, such as
        that of reentrant checkpointing, has no graph.
        """
        if self._recording and not self.evaluating:
            _label_saved(tensor)
            self._held.append(tensor.without_history())

    @contextmanager
    def _inner_graph(self) -> Iterator[None]:
        """Return a context for a graph inside of backward, which is gone at its end."""
        outer, self._held = self._held, []
        try:
            yield
        finally:
            self._held = outer

    # Checkpointing

    def checkpoint(self, function: Callable[[], Tensor], hidden: Tensor) -> Tensor:
        """Run ``function`` of ``hidden``. Its saved tensors, except ``hidden``, are dropped until backward needs
        them."""
        _label_saved(hidden)
        self._checkpoint = Checkpoint(self, function)
        try:
            return function()
        finally:
            self._checkpoint = None

    def recompute(self, checkpoint: Checkpoint) -> dict[int, Tensor]:
        """Run a checkpointed call again and return its saved tensors by index."""
        self._recomputing, self._recomputed, self._saves = checkpoint, {}, 0
        try:
            with self._inner_graph(), self.running_again(1):
                checkpoint.function()
        except StopRecomputation:
            pass
        finally:
            self._recomputing = None
        recomputed, self._recomputed = self._recomputed, {}
        return recomputed

    def checkpoint_reentrantly(self, function: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """Run ``function`` of ``hidden`` without a record. Only ``hidden`` is saved (torch's `CheckpointFunction`)."""
        repeat = self.repeat
        self._recording = False
        try:
            output = function(hidden.without_history())
        finally:
            self._recording = True
        self._reentrant_calls.append(function)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            leaf = Leaf(holds=saved[0].block)
            detached = saved[0].view()
            detached.leaf = leaf
            with self._inner_graph():
                with self.running_again(repeat):
                    again = function(detached)
                _label_saved(again)
                self._propagate(again, g)
            return (leaf.grad,)

        output.node = Node(self, "checkpoint", backward, (hidden,), (hidden,))
        return output

    @contextmanager
    def running_again(self, repeat: int) -> Iterator[None]:
        """Return a context in which a node's backward runs a checkpointed call again, for ``repeat`` layers."""
        before, self.repeat = self.repeat, repeat
        place, operation = self.place, self.operation
        self.operation, self.in_backward = "", False
        try:
            with self.autocast.active() if self.autocast is not None else NO_CONTEXT:
                yield
        finally:
            self.repeat = before
            self.place, self.operation, self.in_backward = place, operation, True

    # Identical layers

    @contextmanager
    def repeated(self, copies: int) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Run one layer for ``copies`` identical ones; call the yielded function with its input and output."""
        if copies == 1:
            yield lambda _input, _output: None
            return
        self.repeat = copies
        self.ledger.begin_forward_repeat()

        def finish(hidden: Tensor, output: Tensor) -> None:
            # Each copy's output is the next copy's input, and is counted as that input.
            blocks = [block for block in self.ledger.left_behind() if block is not output.block]
            if hidden.block is not None and not _sole_owner(hidden):
                blocks.append(hidden.block)
            self.ledger.end_forward_repeat(blocks, copies)

        yield finish
        self.repeat = 1

    # Backward

    def backward(self, root: Tensor, gradient: Tensor) -> None:
        """Send ``gradient`` from ``root`` to every leaf, and free the graph on the way."""
        self._propagate(root, gradient)
        if self.ledger.repeating:
            self.ledger.end_backward_repeat()
        self._reentrant_calls.clear()
        self._held.clear()

    def _propagate(self, root: Tensor, gradient: Tensor) -> None:
        assert root.node is not None
        waiting: dict[Node, dict[int, Tensor]] = {root.node: {0: gradient}}
        queue: list[tuple[int, Node]] = [(-root.node.sequence, root.node)]
        root.node = None
        del gradient
        while queue:
            _, node = heapq.heappop(queue)
            if (node.repeat > 1) != self.ledger.repeating:
                if node.repeat > 1:
                    self.ledger.begin_backward_repeat()
                else:
                    self.ledger.end_backward_repeat()
            self._run(node, waiting, queue)

    def _run(self, node: Node, waiting: dict[Node, dict[int, Tensor]], queue: list[tuple[int, Node]]) -> None:
        self.place, self.operation, self.in_backward = node.place, node.operation, True
        if node.iteration != self.iteration:
            self.iterate(node.iteration)
        arrived = waiting.pop(node)
        saved = node.saved.take()
        gradients = list(node.backward(list(arrived.values()) if node.outputs > 1 else arrived[0], saved))
        # Recomputed tensors are freed now. Other saved tensors live until the gradients have the shape and dtype of
        # their inputs.
        saved.clear()
        for position, (_, _, _, dtype) in enumerate(node.edges):
            gradient = gradients[position]
            if isinstance(gradient, Broadcast):
                whole = gradient.gradient
                gradient = gradients[position] = self.new(gradient.tokens, gradient.features, whole.dtype)
                if gradient.tokens is ONE:
                    self.summed(whole, gradient)
                del whole
            if gradient is not None and gradient.dtype != dtype:
                gradients[position] = self.like(gradient, dtype)
            del gradient
        edges, node.edges, node.saved = node.edges, [], Kept(())
        arrived.clear()
        for position, (target, output, leaf, _) in enumerate(edges):
            gradient, gradients[position] = gradients[position], None
            if gradient is None:
                continue
            assert isinstance(gradient, Tensor)
            if leaf is not None:
                self._gather(leaf, gradient, node.repeat)
            elif target is not None:
                if target not in waiting:
                    waiting[target] = {}
                    heapq.heappush(queue, (-target.sequence, target))
                there = waiting[target].get(output)
                waiting[target][output] = gradient if there is None else self.sum(there, gradient)
                del there
            del gradient

    def sum(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the sum of two gradients: the first itself, unless it is a view or something else refers to it."""
        return first if _sole_owner(first) and not first.is_view else self.like(second)

    def _gather(self, leaf: Leaf, gradient: Tensor, repeat: int) -> None:
        leaf.awaited -= 1
        if leaf.grad is not None and leaf.grad.is_view:
            gradient = self.like(gradient)
            self._gradients = [other for other in self._gradients if other is not leaf.grad]
            leaf.grad = None
        if leaf.accumulating:
            # Added in place to the persistent gradient, once all have arrived.
            leaf.grad = gradient if leaf.awaited else None
            return
        if leaf.holds is not None:
            # Autograd sums an activation's gradients before it accumulates them.
            if leaf.grad is None:
                leaf.grad = gradient
            elif not _sole_owner(leaf.grad):
                leaf.grad = self.like(gradient)
            return
        if leaf.grad is not None:
            return  # added in place
        leaf.grad = gradient if _sole_owner(gradient) else self.like(gradient)
        self._gradients.append(leaf.grad)
        assert leaf.grad.block is not None
        leaf.grad.block.relabel("gradients")
        if repeat > 1:
            self.ledger.defer(leaf.grad.block, repeat)


class Scope:
    """A context: tensors made in it belong to one place of the model."""

    __slots__ = ("_outer", "_place", "_tape")

    def __init__(self, tape: Tape, place: Place) -> None:
        self._tape = tape
        self._place = place

    def __enter__(self) -> None:
        self._outer = self._tape.place
        self._tape.place = self._place

    def __exit__(self, *exception: object) -> None:
        self._tape.place = self._outer


class Both:
    """Saved inputs and saved outputs."""

    __slots__ = ("inputs", "outputs")

    def __init__(self, inputs: Saved, outputs: Saved) -> None:
        self.inputs = inputs
        self.outputs = outputs

    def take(self) -> list[Tensor]:
        """Return the inputs, then the outputs."""
        return [*self.inputs.take(), *self.outputs.take()]


def _label_saved(tensor: Tensor) -> None:
    if tensor.block is not None and tensor.block.component == "temporaries":
        tensor.block.relabel("activations")


NO_CONTEXT = nullcontext()
"""A context that does nothing: memory does not depend on the work."""

SOLE_OWNER = 2
"""sys.getrefcount of a block with one owner: the owner, and the call's own argument."""


def _sole_owner(tensor: Tensor) -> bool:
    return tensor.block is not None and sys.getrefcount(tensor.block) <= SOLE_OWNER


class Autocast:
    """torch.autocast: casts for matmuls, with its cache of casts of trainable leaves."""

    def __init__(self, tape: Tape, dtype: str) -> None:
        self.tape = tape
        self.dtype = dtype
        self.enabled = False
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enter the context. Leaving it clears the cache."""
        was, self.enabled = self.enabled, True
        try:
            yield
        finally:
            self.enabled = was
            if not was:
                self._cache.clear()

    def cached(self, weight: Tensor, cast: Callable[[Tensor, str], Tensor]) -> Tensor:
        """Return ``weight`` in autocast's dtype, from the cache if it is a trainable float32 leaf."""
        if weight.leaf is None or weight.dtype != "float32":
            return cast(weight, self.dtype)
        if id(weight) not in self._cache:
            self._cache[id(weight)] = (weight, cast(weight, self.dtype))
        return self._cache[id(weight)][1]
