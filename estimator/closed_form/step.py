"""One training step of a recipe, in sizes: the live bytes at each peak candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from lorabench.estimator.closed_form.autograd import ITEMSIZES, Autocast, Tape, Tensor
from lorabench.estimator.closed_form.decoders import decoder_of
from lorabench.estimator.closed_form.layout import Unsupported
from lorabench.estimator.closed_form.ledger import Block, Ledger, PeakCandidate
from lorabench.estimator.closed_form.masks import Masks, identical_layers
from lorabench.estimator.closed_form.modules import Modules, Rotary, Weights
from lorabench.estimator.closed_form.operators import Operators
from lorabench.estimator.closed_form.sizes import CHUNK, ONE, SHIFTED_TOKENS, TOKENS, Monomial
from lorabench.estimator.collection import no_collection
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import NoClosedForm
from lorabench.estimator.losses.liger import logits_per_hidden
from lorabench.estimator.models.read_config import has_closed_form, no_closed_form
from lorabench.estimator.models.spec import Layers, ModelSpec
from lorabench.estimator.recipes.resolved import ResolvedRecipe

GRADIENT_OF_LOSS = "gradient of the loss"


def peak_candidates(
    resolved: ResolvedRecipe, backend: Backend, compute_capability: str | None = None, tape: Tape | None = None
) -> list[PeakCandidate]:
    """Return the moments of a steady step at which memory may peak, in order.

    Batch size and length stay open: a candidate has bytes for each monomial. Persistent memory is not included
    (`persistent_bytes`). A given ``tape`` records the step for callers that need more than its candidates.

    Raises:
        UserError: the model lacks the target modules, or has no closed form.
    """
    spec = resolved.spec
    chunks = FIRST_CHUNKS[: logits_per_hidden(spec.vocab_size, spec.hidden_size)]
    op = Operators(tape or Tape(Ledger()), backend, compute_capability)
    return _Step(resolved, op, identical_layers, chunks).run()


LayerOrder = Callable[[ModelSpec, Masks], Iterator[tuple[Layers, int, bool]]]
FIRST_CHUNKS = CHUNK, CHUNK
"""The first chunks of a fused loss, of which one holds the most: later ones find what the first has left in autocast's
cache, as the second does, and none has more tokens."""


def walk_layers(
    resolved: ResolvedRecipe,
    compute_capability: str | None,
    tape: Tape,
    layers: LayerOrder,
    chunks: Sequence[Monomial],
) -> None:
    """Run one micro-batch on CUDA on ``tape``, each of ``layers`` by itself and in the order of the model.

    ``chunks``: the tokens of each chunk of a fused loss.
    """
    _Step(resolved, Operators(tape, "cuda", compute_capability), layers, chunks).run()


def walk_evaluation(
    resolved: ResolvedRecipe,
    compute_capability: str | None,
    tape: Tape,
    layers: LayerOrder,
    chunks: Sequence[Monomial],
) -> None:
    """Run the loss of one batch on CUDA on ``tape``, in eval mode and without gradients, as `walk_layers`."""
    _Step(resolved, Operators(tape, "cuda", compute_capability), layers, chunks).evaluate()


class _Step:
    def __init__(self, resolved: ResolvedRecipe, op: Operators, layers: LayerOrder, chunks: Sequence[Monomial]) -> None:
        spec, recipe = resolved.spec, resolved.recipe
        if not has_closed_form(spec):
            raise NoClosedForm(
                f"{spec.name}: {no_closed_form(spec.model_type)}: use `lorabench estimate` or `lorabench trace`, which "
                "run its step on meta tensors"
            )
        self.resolved = resolved
        self.spec = spec
        self.recipe = recipe
        self.op = op
        self.layers = layers
        self.chunks = chunks
        self.tape = op.tape
        self.ledger = op.tape.ledger
        self.decoder = decoder_of(spec)
        if recipe.mixed_precision != "no":
            self.tape.autocast = Autocast(self.tape, recipe.compute_dtype)

    @no_collection()
    def run(self) -> list[PeakCandidate]:
        with self._saying_what_lacks():
            return self._run()

    @contextmanager
    def _saying_what_lacks(self) -> Iterator[None]:
        """Return a context that raises `NoClosedForm` if a program needs what the closed form cannot say."""
        try:
            yield
        except Unsupported as error:
            raise NoClosedForm(
                f"{self.spec.name}: the closed form cannot say this recipe ({error}): use lorabench trace"
            ) from error

    def _run(self) -> list[PeakCandidate]:
        ledger = self.ledger
        for phase in ("loaded", "adapted", "forward"):  # before the step there is only persistent memory
            ledger.enter(phase)
        batch = self._batch()
        with self._autocast():
            loss = self._forward()
        ledger.enter("backward")
        with self.tape.scope("loss"):
            self.tape.backward(loss, self.tape.new(ONE, 1, "float32", name=GRADIENT_OF_LOSS))
        del loss
        ledger.enter("optimizer")
        ledger.mark()
        ledger.carry_over(self.tape.kept_blocks())
        del batch
        return ledger.candidates

    @no_collection()
    def evaluate(self) -> None:
        self.tape.evaluating = True
        batch = self._batch()
        with self._saying_what_lacks(), self._autocast():
            loss = self._forward()
        del loss, batch

    def _batch(self) -> Block:
        # token ids, labels, and the attention mask of a padded batch
        return Block(self.ledger, TOKENS, (2 + self.recipe.padding) * ITEMSIZES["int64"], "buffers")

    def _autocast(self) -> AbstractContextManager[object]:
        context = self.tape.autocast
        return nullcontext() if context is None else context.active()

    # Forward

    def _forward(self) -> Tensor:
        spec, recipe, op = self.spec, self.recipe, self.op
        outside = Modules(op, self.resolved, Layers(1, spec.outside, (*spec.embeddings, *spec.final_norm)), None)
        saved = {module.path for module in self.resolved.modules_to_save}
        for table in spec.embeddings:
            if table.name.removesuffix(".weight") in saved:
                outside.weights[table.name] = Weights(recipe).saved(table.name, table.parameters)
        hidden = self._hidden_states(outside)
        head = self._head_weight(outside, saved)
        if recipe.fused_loss is not None:
            with self.tape.scope("fused loss"):
                return self._fused_loss(hidden, head)
        with self.tape.scope("loss"):
            return self._loss(outside, hidden, head)

    def _head_weight(self, outside: Modules, saved: set[str]) -> Tensor:
        weights, head = Weights(self.recipe), self.spec.head
        elements = head.in_features * head.out_features
        if head.name in saved:
            return weights.saved(head.name, elements)
        if self.spec.tie_word_embeddings and not saved:
            tied = outside.weights[self.spec.embeddings[0].name]
            if tied.leaf is not None:
                tied.leaf.awaited = 2
            return tied
        return weights.base(head.name, elements)

    def _hidden_states(self, outside: Modules) -> Tensor:
        tape = self.tape
        hidden, masks, rotary, others = self.decoder.begin(outside, partial(Masks, self.op, self.resolved))
        if self.recipe.use_reentrant:
            self._keep(*(rotary or ()), *masks.tensors())
        for group, copies, window in self.layers(self.spec, masks):
            modules = Modules(self.op, self.resolved, group, masks.mask(window))
            with tape.repeated(copies) as finish:
                output = self._layer(modules, hidden, rotary)
                finish(hidden, output)
            hidden = output
            del output
        normed = self.decoder.final_norm(outside, hidden, rotary)
        del hidden, rotary, masks, others  # transformers' forward references them until it returns
        return normed

    def _keep(self, *tensors: Tensor) -> None:
        """Keep ``tensors`` as long as the model's outputs, if the loop keeps those.

        The loss is one of them, and refers to the graph: to the arguments of reentrant calls, and to the embedding's
        output (`Modules.embedding`).
        """
        if self.recipe.keep_outputs and not self.tape.evaluating:
            self.tape.outputs += [tensor.without_history() for tensor in tensors]

    def _layer(self, modules: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
        tape, decoder = self.tape, self.decoder
        if not self.recipe.gradient_checkpointing or tape.evaluating:
            with tape.scope("residual stream"):
                return decoder.layer(modules, hidden, rotary)

        def run(hidden: Tensor) -> Tensor:
            with tape.scope("residual stream"):
                return decoder.layer(modules, hidden, rotary)

        if self.recipe.use_reentrant:
            return tape.checkpoint_reentrantly(run, hidden)
        kept = hidden.view(node=hidden.node)
        kept.leaf = hidden.leaf
        return tape.checkpoint(lambda: run(kept), kept)

    # Loss

    def _fused_loss(self, hidden: Tensor, head: Tensor) -> Tensor:
        op, vocabulary = self.op, self.spec.vocab_size
        if self.recipe.loss == "liger":
            return op.fused_linear_cross_entropy(hidden, head, vocabulary, self.chunks)
        if self.recipe.loss == "trl":
            return op.chunked_log_probabilities(hidden, head, vocabulary, self.chunks)
        return op.cut_cross_entropy(hidden, head, vocabulary)

    def _loss(self, outside: Modules, hidden: Tensor, head: Tensor) -> Tensor:
        op = self.op
        vocabulary = self.spec.vocab_size
        logits = self.decoder.scale_logits(outside, op.linear(hidden, head, vocabulary, component="logits"))
        rule = self.recipe.loss_rule
        upcast = op.cast(logits, "float32", "logits")
        if rule == "rebound":
            logits = upcast  # `logits = self.lm_head(hidden_states).float()`
        # The shifted slice of a single sequence is contiguous already.
        several = self.recipe.batch_size > 1
        self._keep(logits)
        if rule != "standard":
            shifted = op.all_but_last(upcast)
            if several:
                shifted = op.copy(shifted, "logits")
            return op.cross_entropy(shifted, (op.labels(SHIFTED_TOKENS),) if several else ())
        padded = op.labels()  # transformers pads each sequence by one label, which is left out here
        return op.cross_entropy(upcast, (op.labels(),) if several else (padded,))
