"""Operators over the features of each token: means, layer norms, softmaxes."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Gradients, Tensor
from lorabench.estimator.closed_form.operators.elementwise import Elementwise
from lorabench.estimator.closed_form.sizes import ONE

STATISTICS = "mean of each token", "deviation of each token"


class Norms(Elementwise):
    """Operators that read all features of a token for each element that they write."""

    def mean(self, x: Tensor, groups: int = 1) -> Tensor:
        """Return each token's mean over its features, (tokens, 1), or over those of each head, (tokens, ``groups``)."""
        tape, tokens, features = self.tape, x.tokens, x.features
        # mean: grad.expand(self.sizes()) / n
        return tape.record(
            "mean",
            (x,),
            lambda g, _: (tape.new(tokens, features, g.dtype),),
            (),
            lambda: tape.new(tokens, groups, x.dtype),
        )

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return torch's layer norm of x, in its shape. It may have no weight, and no bias.

        It saves x, the weight, and each token's mean and reciprocal deviation: in float32 on CUDA, in x's dtype on the
        CPU. CUDA's autocast runs it in float32; the CPU's does not change the dtype.
        """
        if self.autocast is not None and self.backend == "cuda":
            bias, weight = (None if t is None else self.cast(t, "float32") for t in (bias, weight))
            x = self.cast(x, "float32")
        tape, given = self.tape, tuple(t for t in (weight, bias) if t is not None)
        x_needs, shapes = x.requires_grad, [(t.features, t.dtype, t.requires_grad) for t in given]
        statistics_dtype = "float32" if self.backend == "cuda" else x.dtype
        statistics: list[Tensor] = []
        tensor = x

        def forward() -> Tensor:
            output = tape.like(tensor)
            statistics.extend(tape.new(tensor.tokens, 1, statistics_dtype, name=name) for name in STATISTICS)
            return output

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # native_layer_norm: native_layer_norm_backward(grad, input, shape, mean, rstd, weight, bias, mask)
            to_x = tape.like(g) if x_needs else None
            return to_x, *(tape.new(ONE, features, dtype) if need else None for features, dtype, need in shapes)

        saved = (x, *given[:1])
        return tape.record("layer_norm", (x, *given), backward, saved, forward, saved_after=statistics)

    def fused_rms_norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Return torch's RMS norm of x, in its shape: it saves x, the weight, and each token's reciprocal root.

        CUDA's autocast runs it in float32.
        """
        if self.autocast is not None and self.backend == "cuda":
            weight = None if weight is None else self.cast(weight, "float32")
            x = self.cast(x, "float32")
        tape, given = self.tape, () if weight is None else (weight,)
        x_needs, shapes = x.requires_grad, [(t.features, t.dtype, t.requires_grad) for t in given]
        roots: list[Tensor] = []
        tensor = x

        def forward() -> Tensor:
            output = tape.like(tensor)
            roots.append(tape.new(tensor.tokens, 1, "float32", name=STATISTICS[1]))
            return output

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # _fused_rms_norm: _fused_rms_norm_backward(grad, input, shape, rstd, weight, mask)
            to_x = tape.like(g) if x_needs else None
            return to_x, *(tape.new(ONE, features, dtype) if need else None for features, dtype, need in shapes)

        return tape.record("rms_norm", (x, *given), backward, (x, *given), forward, saved_after=roots)

    def softmax(self, x: Tensor, dtype: str) -> Tensor:
        """Return softmax of x in ``dtype``, in its shape; it saves its result.

        CUDA's kernel reads float16 and writes float32 (``half_to_float``); any other input is cast to ``dtype`` first.
        """
        tape, was = self.tape, x.dtype
        half_to_float = self.backend == "cuda" and was == "float16" and dtype == "float32"
        converted = x if half_to_float else self.cast(x, dtype)
        to_input = was if half_to_float else dtype

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # _softmax: _softmax_backward_data(grad, result, dim, self.scalar_type())
            to_x = tape.like(g, to_input)
            if self.backend == "cuda":
                # softmax_backward_cuda_out (SoftMax.cu) begins with `Tensor tmp = grad * output`.
                product = tape.like(g, name="gradient times softmax")
                del product
            return (to_x,)

        return tape.record("softmax", (converted,), backward, (), lambda: tape.like(x, dtype), saved_output=True)

    def safe_softmax(self, x: Tensor) -> Tensor:
        """Return softmax of float32 scores, in their shape, for the math kernel; fully masked rows become zero.

        On CUDA, `_safe_softmax` (`attention.cpp`) also allocates a boolean tensor of the masked scores.
        """
        output = self.softmax(x, "float32")
        if self.backend == "cuda":
            masked = self.tape.like(x, "bool", name="masked scores")
            del masked
        return output
