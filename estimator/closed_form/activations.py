"""Activation functions of feed-forward layers, as transformers writes them (`activations.py`)."""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.operators import Operators


def activate(op: Operators, name: str, x: Tensor) -> Tensor:
    """Return activation ``name`` of a config, such as ``gelu_new``, of x (B·S, features), in its shape.

    Most activations are one operator of torch, which saves its input. In the others, each operator saves its own
    input or result.
    """
    with op.tape.scope("feed-forward"):
        match name:
            case "gelu_new":
                return _gelu_new(op, x)
            case "gelu_fast":
                return _gelu_fast(op, x)
        return op.activation(x)


def _gelu_new(op: Operators, x: Tensor) -> Tensor:
    """0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))."""
    return op.multiply(op.scale(x), op.shift(op.tanh(op.scale(op.add(x, op.scale(op.power(x)))))))


def _gelu_fast(op: Operators, x: Tensor) -> Tensor:
    """0.5 · x · (1 + tanh(x · √(2/π) · (1 + 0.044715 · x · x)))."""
    return op.multiply(op.scale(x), op.shift(op.tanh(op.multiply(op.scale(x), op.shift(op.multiply(op.scale(x), x))))))
