"""Cut Cross-Entropy: the loss without logits in memory (`losses.cut_cross_entropy`)."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Both, Gradients, Node, Tensor
from lorabench.estimator.closed_form.operators.elementwise import Elementwise, component_of_gradient
from lorabench.estimator.closed_form.sizes import ONE, SHIFTED_TOKENS
from lorabench.estimator.closed_form.work import ChunkedLoss, LossMatmul


class CutCrossEntropy(Elementwise):
    """The operators of Cut Cross-Entropy."""

    def cut_cross_entropy(self, x: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
        """Return the mean cross-entropy of x · weightᵀ for x (B·S, h) and weight (V, h), both in the same 16 bits."""
        tape, features = self.tape, x.features

        def work(*matmuls: LossMatmul) -> ChunkedLoss:
            return ChunkedLoss(features, vocabulary, vocabulary, weight_dtype, matmuls, 0, SHIFTED_TOKENS)

        x, weight_dtype = self.cast(x, weight.dtype), weight.dtype
        labels = self._valid_labels()
        needs_weight = weight.requires_grad and not tape.evaluating

        def backward(_: Tensor, saved: list[Tensor]) -> Gradients:
            x, saved_weight, *_vectors = saved
            order = self._vocabulary_order(vocabulary)
            to_x = tape.like(x, name="gradient of hidden states")
            to_weight = None
            if needs_weight:
                component = component_of_gradient(weight)
                to_weight = tape.like(saved_weight, component=component, name="gradient of the head's weight")
            used: tuple[LossMatmul, ...] = ("logits again", "hidden", *(("weight",) if needs_weight else ()))
            with tape.working(work(*used)):
                del order
            return to_x, to_weight

        node = Node(tape, "cut_cross_entropy", backward, (x, weight), (x, weight, labels))
        with tape.working(work("logits")):
            sums = tape.new(SHIFTED_TOKENS, 1, "float32", name="logarithm of each token's sum")
            averages = None if tape.evaluating else tape.new(ONE, vocabulary, "float32", name="mean of each logit")
        losses = tape.new(SHIFTED_TOKENS, 1, "float32", name="loss of each token")
        loss = tape.new(ONE, 1, "float32", name="the loss itself")
        del losses
        if averages is not None:
            node.saved = Both(node.saved, tape.save((sums, averages)))
            loss.node = node
        return loss

    def _valid_labels(self) -> Tensor:
        """Return the positions of tokens that have a label, (B·(S − 1), 1), int64."""
        tape = self.tape
        mask = tape.new(SHIFTED_TOKENS, 1, "bool", name="which tokens have a label")
        wide = tape.new(SHIFTED_TOKENS, 2, "int64", name="indices of the labelled tokens")
        del mask
        narrow = tape.new(SHIFTED_TOKENS, 2, "int32", name="indices of the labelled tokens")
        del wide
        positions = tape.new(SHIFTED_TOKENS, 1, "int64", name="positions of the labelled tokens")
        del narrow
        return positions

    def _vocabulary_order(self, vocabulary: int) -> Tensor:
        """Return the vocabulary sorted by mean logit, (V,), int32."""
        tape = self.tape
        values = tape.new(ONE, vocabulary, "float32", name="sorted means of logits")
        wide = tape.new(ONE, vocabulary, "int64", name="order of the vocabulary")
        del values
        order = tape.new(ONE, vocabulary, "int32", name="order of the vocabulary")
        del wide
        return order
