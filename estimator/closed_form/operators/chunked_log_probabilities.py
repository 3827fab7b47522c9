"""TRL's fused head and loss: the log-probabilities of labels, a tile of logits at a time (`losses.trl`)."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.estimator.closed_form.autograd import Both, Gradients, Node, Tensor
from lorabench.estimator.closed_form.operators.elementwise import component_of_gradient
from lorabench.estimator.closed_form.operators.indexing import Indexing
from lorabench.estimator.closed_form.sizes import CHUNK, ONE, SHIFTED_TOKENS, Monomial
from lorabench.estimator.closed_form.work import ChunkedLoss, LossMatmul
from lorabench.estimator.losses.trl import TILE_VOCABULARY, tile_widths

OF_EACH_TOKEN = ("maximum", "sum", "sum", "sum", "sum", "maximum", "label's logit")
"""The float32 vectors that forward fills."""
INDICES_OF_MASK = "indices of the labelled tokens"


class ChunkedLogProbabilities(Indexing):
    """The operators of TRL's loss."""

    def chunked_log_probabilities(
        self, x: Tensor, weight: Tensor, vocabulary: int, chunks: Sequence[Monomial]
    ) -> Tensor:
        """Return the mean cross-entropy of x · weightᵀ for x (B·S, h) and weight (V, h), one of ``chunks`` at a time.

        ``chunks``: the tokens of each. All tokens have a label, except the last of each sequence.
        """
        tape = self.tape
        rest = self.all_but_last(x)
        mask = tape.new(SHIFTED_TOKENS, 1, "bool", name="which tokens have a label")
        labelled = self._labelled(rest, mask)
        del rest
        self._indices()
        targets = tape.new(SHIFTED_TOKENS, 1, "int64", name="labels")
        dtype = x.dtype if self.autocast is None else self.autocast.dtype
        log_probabilities = self._tiles(labelled, weight, vocabulary, dtype, chunks, targets)
        del labelled, targets
        # masked_scatter: masked_scatter_backward: grad.masked_select(mask)
        scattered = tape.record(
            "masked_scatter",
            (log_probabilities,),
            lambda _, __: (tape.new(SHIFTED_TOKENS, 1, "float32"),),
            (mask,),
            lambda: tape.new(SHIFTED_TOKENS, 1, "float32", name="log-probabilities"),
        )
        del log_probabilities
        # sum, division, neg: the gradient is one number, expanded
        return tape.record(
            "mean",
            (scattered,),
            lambda g, _: (g.passed_on(),),
            (),
            lambda: tape.new(ONE, 1, "float32", name="the loss itself"),
        )

    def _indices(self) -> None:
        self.tape.new(SHIFTED_TOKENS, 2, "int64", name=INDICES_OF_MASK)  # nonzero's rows: sequence, position

    def _labelled(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the rows of ``x`` under ``mask``, all of them, as a copy."""
        tape, features, dtype = self.tape, x.features, x.dtype

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # index: index_backward(grad.new_zeros(self.sizes()), indices, grad)
            whole = tape.new(SHIFTED_TOKENS, features, dtype)
            self._indices()
            return (whole,)

        def compute() -> Tensor:
            indices = tape.new(SHIFTED_TOKENS, 2, "int64", name=INDICES_OF_MASK)
            rows = tape.new(SHIFTED_TOKENS, features, dtype, name="hidden states of the labelled tokens")
            del indices
            return rows

        return tape.record("index", (x,), backward, (mask,), compute)

    def _tiles(
        self, x: Tensor, weight: Tensor, vocabulary: int, dtype: str, chunks: Sequence[Monomial], targets: Tensor
    ) -> Tensor:
        """Return the log-probabilities of ``targets``, (tokens, 1) in float32."""
        tape = self.tape
        needs_weight = weight.requires_grad and not tape.evaluating

        def work(*matmuls: LossMatmul, accesses: int) -> ChunkedLoss:
            return ChunkedLoss(x_features, vocabulary, TILE_VOCABULARY, dtype, matmuls, accesses, SHIFTED_TOKENS)

        def tiles(x: Tensor, weight: Tensor) -> None:
            for rows in chunks:
                chunk = None if x.dtype == dtype else tape.new(rows, x.features, dtype, name="a chunk of hidden states")
                for width in tile_widths(vocabulary):
                    if weight.dtype != dtype:
                        tape.new(ONE, width * x.features, dtype, name="a part of the head's weight")
                del chunk

        x_features, hidden_dtype, weight_dtype = x.features, x.dtype, weight.dtype
        weight_elements = weight.features

        def backward(_: Tensor, saved: list[Tensor]) -> Gradients:
            x, saved_weight, *_vectors = saved
            to_x = tape.new(SHIFTED_TOKENS, x_features, "float32", name="gradient of hidden states")
            to_weight = None
            component = component_of_gradient(weight)
            if needs_weight:
                whole = "temporaries" if weight_dtype != "float32" else component
                to_weight = tape.new(ONE, weight_elements, "float32", whole, name="gradient of the head's weight")
            tile = tape.new(CHUNK, TILE_VOCABULARY, dtype, "logits", name="a tile of logits")
            used: tuple[LossMatmul, ...] = ("logits again", "hidden", *(("weight",) if needs_weight else ()))
            with tape.working(work(*used, accesses=4)):
                tiles(x, saved_weight)
            cast_x = to_x if hidden_dtype == "float32" else tape.like(to_x, hidden_dtype)
            cast_weight = to_weight
            if to_weight is not None and weight_dtype != "float32":
                cast_weight = tape.like(to_weight, weight_dtype, component)
            del tile
            return cast_x, cast_weight

        vectors = [tape.new(SHIFTED_TOKENS, 1, "float32", name=f"{of} of each token") for of in OF_EACH_TOKEN]
        tile = tape.new(CHUNK, TILE_VOCABULARY, dtype, "logits", name="a tile of logits")
        node = Node(tape, "chunked_log_probabilities", backward, (x, weight), (x, weight, targets))
        with tape.working(work("logits", accesses=2)):
            tiles(x, weight)
        log_z, log_probabilities, entropy = (
            tape.new(SHIFTED_TOKENS, 1, "float32", name=f"{of} of each token")
            for of in ("logarithm of the sum", "log-probability", "entropy")
        )
        del vectors, tile
        if tape.evaluating:
            return log_probabilities
        node.saved = Both(node.saved, tape.save((log_z, entropy)))
        log_probabilities.node = node
        return log_probabilities
