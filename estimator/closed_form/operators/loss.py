"""The loss: torch's cross-entropy of logits, and Liger's, which is fused with the head's matmul."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.estimator.closed_form.autograd import Gradients, Node, Tensor
from lorabench.estimator.closed_form.operators.elementwise import Elementwise, component_of_gradient
from lorabench.estimator.closed_form.sizes import CHUNK, ONE, TOKENS, Monomial
from lorabench.estimator.closed_form.work import ChunkedLoss, LossMatmul
from lorabench.estimator.losses.liger import adds_16_bit_products

LOSS = "the loss itself"
SHIFTED_LABELS = "labels, shifted"
CHUNK_OF_LOGITS = "a chunk's logits"
CHUNK_OF_HIDDEN = "a chunk of hidden states, or of their gradient"
ACCESSES_OF_LOGITS = 3
"""Memory accesses of Liger's kernel, per logit: two reads, and a write of the gradient."""
COPY_OF_HEAD = "copy of the head's weight or of its gradient"


class Loss(Elementwise):
    """The operators of the loss."""

    def labels(self, tokens: Monomial = TOKENS) -> Tensor:
        """Return shifted labels, (``tokens``, 1), int64."""
        return self.tape.new(tokens, 1, "int64", name=SHIFTED_LABELS)

    def cross_entropy(self, logits: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        """Return the mean cross-entropy of float32 ``logits``, (tokens, V), with ``labels``.

        It saves the log-probabilities and ``labels``, which is empty if the labels are a view of the batch.
        """
        tape = self.tape

        def backward_of_mean(g: Tensor, saved: list[Tensor]) -> Gradients:
            # nll_loss_forward: nll_loss_backward(grad, self, target, weight, reduction, ignore_index, total_weight)
            return (tape.like(saved[0], component="logits"),)

        # _log_softmax: _log_softmax_backward_data(grad, result, dim, self.scalar_type())
        log_probabilities = tape.record(
            "cross_entropy",
            (logits,),
            lambda g, _: (tape.like(g, component="logits"),),
            (),
            lambda: tape.like(logits, component="logits"),
            saved_output=True,
        )
        return tape.record(
            "cross_entropy",
            (log_probabilities,),
            backward_of_mean,
            (log_probabilities, *labels),
            lambda: tape.new(ONE, 1, "float32", name=LOSS),
        )

    def fused_linear_cross_entropy(
        self, x: Tensor, weight: Tensor, vocabulary: int, chunks: Sequence[Monomial]
    ) -> Tensor:
        """Return the mean cross-entropy of x · weightᵀ for x (B·S, h) and weight (V, h), one of ``chunks`` at a time.

        ``chunks``: the tokens of each. As in Liger, forward also computes the gradients, except in evaluation. Each
        chunk's logits are overwritten by their gradient.
        """
        tape = self.tape
        trains = weight.requires_grad and not tape.evaluating
        operation = "fused_linear_cross_entropy"
        # LigerFusedLinearCrossEntropyFunction.backward returns the gradients of forward: grad_input, grad_weight.
        node = Node(tape, operation, lambda _, saved: (saved[0], saved[1] if trains else None), (x, weight), ())
        padded, shifted = (tape.new(TOKENS, 1, "int64", name=SHIFTED_LABELS) for _ in range(2))
        to_x = tape.like(x, component="activations", name="gradient of the last hidden state")
        to_weight = None
        if trains:
            component = component_of_gradient(weight, "activations")
            to_weight = tape.like(weight, component=component, name="gradient of the head's weight")
        losses = tape.new(TOKENS, 1, "float32", name="loss of each token")
        counted = tape.new(TOKENS, 1, "bool", name="which tokens count")
        dtype = x.dtype if self.autocast is None else self.autocast.dtype
        in_place = x.dtype == weight.dtype == dtype
        shared = tape.new(CHUNK, vocabulary, dtype, "logits", name=CHUNK_OF_LOGITS) if in_place else None
        matmuls: tuple[LossMatmul, ...] = ("logits", "hidden", "weight") if trains else ("logits", "hidden")
        work = ChunkedLoss(x.features, vocabulary, vocabulary, dtype, matmuls, ACCESSES_OF_LOGITS, TOKENS)
        with tape.working(work):
            for rows in chunks:
                if shared is None:
                    logits = self._chunk_of_logits(x, weight, vocabulary, dtype, rows)
                if to_weight is not None:
                    self._add_to_weight_gradient(to_weight, x, dtype, rows)
                if shared is None:
                    del logits
        del padded, shifted, losses, counted, shared
        node.saved = tape.save((to_x,) if to_weight is None else (to_x, to_weight))
        loss = tape.new(ONE, 1, "float32", name=LOSS)
        loss.node = node
        return loss

    def _chunk_of_logits(self, x: Tensor, weight: Tensor, vocabulary: int, dtype: str, rows: Monomial) -> Tensor:
        """Return a chunk's logits, (rows, V), after the matmuls for them and for the hidden states' gradient."""
        tape = self.tape

        def cast(whole: Tensor, to: str) -> Tensor:
            return whole if whole.dtype == to else tape.like(whole, to, name=f"{to} {COPY_OF_HEAD}")

        def cast_chunk() -> Tensor | None:
            return None if x.dtype == dtype else tape.new(rows, x.features, dtype, name=CHUNK_OF_HIDDEN)

        second, first = cast(weight, dtype), cast_chunk()  # autocast does not cache its cast of the transpose, a view
        logits = tape.new(rows, vocabulary, dtype, "logits", name=CHUNK_OF_LOGITS)
        del second, first
        if tape.evaluating:
            return logits
        second = self.autocast.cached(weight, cast) if self.autocast is not None else weight
        to_chunk = tape.new(rows, x.features, dtype, name=CHUNK_OF_HIDDEN)
        del second, to_chunk
        return logits

    def _add_to_weight_gradient(self, to_weight: Tensor, x: Tensor, dtype: str, rows: Monomial) -> None:
        """Add a chunk's share to the weight's gradient: in the matmul itself (addmm), or after it, cast to float32."""
        tape = self.tape
        in_matmul = dtype != "float32" and adds_16_bit_products(self.compute_capability)
        if in_matmul and to_weight.dtype in ("float32", dtype):
            if x.dtype != dtype:
                tape.new(rows, x.features, dtype, name=CHUNK_OF_HIDDEN)
            return
        chunk = tape.new(rows, x.features, dtype, name=CHUNK_OF_HIDDEN) if x.dtype != dtype else None
        share = tape.like(to_weight, dtype, name=f"{dtype} {COPY_OF_HEAD}")
        del chunk
        if dtype != "float32":
            tape.like(share, "float32", name=f"float32 {COPY_OF_HEAD}")
