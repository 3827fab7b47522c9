"""Arithmetic as people write it: ⌈2 · 41,943,040 · (4 + 4) / 64⌉."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ROUNDINGS: dict[str, Callable[[Fraction], int]] = {"ceil": math.ceil, "floor": math.floor}
_SIGNS = {",": "", "·": "*", "⌈": "ceil(", "⌉": ")", "⌊": "floor(", "⌋": ")"}


def value_of(text: str) -> Fraction:
    """Return exactly what the arithmetic on whole numbers in ``text`` comes to."""
    for sign, meaning in _SIGNS.items():
        text = text.replace(sign, meaning)
    return _value(ast.parse(text, mode="eval").body)


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        return Fraction(_ROUNDINGS[node.func.id](_value(node.args[0])))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return Fraction(node.value)
