"""torch's functions on sizes: shape, strides and storage of each result, and the step that autograd records.

A program calls them by their names in torch: `_torch_matmul` is its `matmul`. Each takes and returns `Value`. The
formula of a gradient, from torch's derivatives.yaml, stands beside each backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.estimator.closed_form.layout import Unsupported
from lorabench.estimator.closed_form.programs.attention import Attention
from lorabench.estimator.closed_form.programs.elementwise import (
    COMPARISONS,
    SAVES_INPUT,
    SAVES_NOTHING,
    SAVES_OUTPUT,
)
from lorabench.estimator.closed_form.programs.lookups import Lookups
from lorabench.estimator.closed_form.programs.matmuls import Matmuls
from lorabench.estimator.closed_form.programs.reductions import Reductions
from lorabench.estimator.closed_form.programs.values import Value

SAME_NAMES = {
    "__getitem__": "getitem",
    "divide": "div",
    "__rdiv__": "div",
    "__rtruediv__": "div",
    "true_divide": "div",
    "__rsub__": "sub",
    "multiply": "mul",
    "concat": "cat",
    "concatenate": "cat",
    "square": "pow",
    "__pow__": "pow",
    "type": "to",
}
"""Functions that do the same."""


class Functions(Reductions, Lookups, Matmuls, Attention):
    """All functions, on the modules of one layer or of the model around the layers."""

    def call(self, name: str, positional: Sequence[Any], named: dict[str, Any]) -> list[Value]:
        """Return the results of a call.

        Raises:
            Unsupported: there is no such function here.
        """
        name = SAME_NAMES.get(name, name)
        if name in SAVES_INPUT | SAVES_OUTPUT | SAVES_NOTHING:
            return [self.unary(name, positional[0])]
        if name in COMPARISONS:
            return [self.comparison(*positional)]
        method = getattr(self, f"_torch_{name}", None)
        if method is None:
            raise Unsupported(f"no function {name}")
        found = method(*positional, **named)
        return found if isinstance(found, list) else [found]
