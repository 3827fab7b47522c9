"""Elementwise operators: casts, sums, products, activations, dropout."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Autocast, Broadcast, Gradients, Tape, Tensor, promote
from lorabench.estimator.closed_form.sizes import ONE, Monomial
from lorabench.estimator.devices.backend import Backend


class Elementwise:
    """Operators that work on each element alone, on one tape."""

    def __init__(self, tape: Tape, backend: Backend, compute_capability: str | None = None) -> None:
        """Record on ``tape`` the operators of ``backend``. ``compute_capability``: as in `Device`."""
        self.tape = tape
        self.backend = backend
        self.compute_capability = compute_capability

    @property
    def autocast(self) -> Autocast | None:
        """The autocast context if it is active, else None."""
        context = self.tape.autocast
        return context if context is not None and context.enabled else None

    def cast(self, x: Tensor, dtype: str, component: str = "temporaries") -> Tensor:
        """Return x in ``dtype``, in its shape: x itself if it has that dtype."""
        if x.dtype == dtype:
            return x
        tape, was = self.tape, x.dtype
        # _to_copy: grad.to(self.dtype)
        return tape.record("cast", (x,), lambda g, _: (tape.like(g, was),), (), lambda: tape.like(x, dtype, component))

    def to_autocast(self, x: Tensor) -> Tensor:
        """Return x in autocast's dtype for matmuls, in its shape; x itself without autocast."""
        context = self.autocast
        return x if context is None else context.cached(x, self.cast)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b, in a's shape. ``b`` has the same shape, or fewer tokens; then its gradient is a sum."""
        tape, dtype = self.tape, promote(a.dtype, b.dtype)
        tokens, features = b.tokens, b.features
        broadcast = tokens != a.tokens

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            # add: self: grad; other: grad. A broadcast operand sums it to its own shape.
            return g.passed_on(), tape.new(tokens, features, g.dtype) if broadcast else g.passed_on()

        return tape.record("add", (a, b), backward, (), lambda: tape.like(a, dtype))

    def scale(self, x: Tensor) -> Tensor:
        """Return x times a number, or −x, in its shape."""
        # mul: grad * other; neg: grad.neg()
        return self._unary("scale", x, component=component_of(x))

    def shift(self, x: Tensor) -> Tensor:
        """Return x plus a number, in its shape."""
        tape = self.tape
        # add: grad
        return tape.record("shift", (x,), lambda g, _: (g.passed_on(),), (), lambda: tape.like(x))

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a · b, elementwise. Both have the same shape, or one is broadcast: it has one token, or one feature.

        Their order is that of the call in Python, since b's gradient is computed first.
        """
        tape, dtype = self.tape, promote(a.dtype, b.dtype)
        a_needs, b_needs = a.requires_grad, b.requires_grad
        a_shape, b_shape = (a.tokens, a.features), (b.tokens, b.features)
        whole = b if a_shape[0] is ONE or a_shape[1] < b_shape[1] else a
        whole_shape = (whole.tokens, whole.features)

        def to_operand(gradient: Tensor, shape: tuple[Monomial, int]) -> Tensor | Broadcast:
            return gradient if shape == whole_shape else Broadcast(gradient, *shape)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # mul: other: grad * self, self: grad * other. A broadcast operand sums its gradient to its own shape.
            to_b = tape.like(g) if b_needs else None
            to_a = tape.like(g) if a_needs else None
            return to_a and to_operand(to_a, a_shape), to_b and to_operand(to_b, b_shape)

        saved = (*((b,) if a_needs else ()), *((a,) if b_needs else ()))
        return tape.record("multiply", (a, b), backward, saved, lambda: tape.like(whole, dtype))

    def activation(self, x: Tensor) -> Tensor:
        """Return an elementwise function of x whose backward needs x (silu, gelu)."""
        # silu: silu_backward(grad, self); gelu: gelu_backward(grad, self)
        return self._unary("activation", x, (x,))

    def tanh(self, x: Tensor) -> Tensor:
        """Return tanh of x, in its shape."""
        # tanh: tanh_backward(grad, result)
        return self._unary("tanh", x, component=component_of(x), saved_output=True)

    def rsqrt(self, x: Tensor) -> Tensor:
        """Return 1 / √x, in x's shape, which is one number per token: backward's intermediates are left out."""
        # rsqrt: -0.5 * grad * result.pow(3)
        return self._unary("rsqrt", x, saved_output=True)

    def power(self, x: Tensor) -> Tensor:
        """Return x to a power, in its shape. CUDA's autocast runs it in float32."""
        if self.autocast is not None and self.backend == "cuda":
            x = self.cast(x, "float32")
        tape = self.tape

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # pow: grad * (exponent * self.pow(exponent - 1)). The results of all three operations are alive at once.
            lower = tape.like(g)
            multiple = tape.like(g)
            product = tape.like(g)
            del lower, multiple
            return (product,)

        return tape.record("power", (x,), backward, (x,), lambda: tape.like(x))

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """Return x with dropout, in its shape. It saves a mask: one byte per element on CUDA, x's dtype on the CPU."""
        if probability == 0 or self.tape.evaluating:
            return x
        cuda = self.backend == "cuda"
        mask = self.tape.like(x, "bool" if cuda else x.dtype, name="dropout mask")
        # native_dropout: grad * mask * scale, whose mask is an output; on the CPU mul: grad * mask
        return self._unary("dropout", x, () if cuda else (mask,), saved_after=(mask,) if cuda else ())

    def _unary(
        self,
        operation: str,
        x: Tensor,
        saved: tuple[Tensor, ...] = (),
        *,
        component: str = "temporaries",
        saved_after: tuple[Tensor, ...] = (),
        saved_output: bool = False,
    ) -> Tensor:
        """Return a new tensor of x's shape and dtype. Backward allocates a gradient of the same shape."""
        tape = self.tape
        return tape.record(
            operation,
            (x,),
            lambda g, _: (tape.like(g, component=component),),
            saved,
            lambda: tape.like(x, component=component),
            saved_after=saved_after,
            saved_output=saved_output,
        )


def component_of_gradient(weight: Tensor, other: str = "temporaries") -> str:
    """Return the component of the first gradient of ``weight``; ``other`` if that is added to an earlier one."""
    kept = weight.leaf is not None and not weight.leaf.accumulating
    return "gradients" if kept else other


def component_of(x: Tensor) -> str:
    """Return the component of an elementwise operation's result: logits if x is logits, else temporaries."""
    return "logits" if x.block is not None and x.block.component == "logits" else "temporaries"
