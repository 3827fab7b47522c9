"""Sizes as expressions of a config's sizes: ``=hidden_size*2/num_attention_heads``.

Terms are joined by ``+``, factors by ``*`` and ``/``. ``chunks(64)`` is the number of chunks of 64 tokens in the
sequence, the last of which may not be whole; ``chunks(chunk_size)`` has a size of the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple


class Term(NamedTuple):
    """A number times a quotient of products of sizes."""

    number: Fraction
    above: tuple[str, ...]
    below: tuple[str, ...]


def chunk_of(name: str) -> str | None:
    """Return what the chunks of ``chunks(…)`` are: a number, or the name of a size; None for another name."""
    return name.removeprefix("chunks(").removesuffix(")") if name.startswith("chunks(") else None


@cache
def terms(expression: str) -> tuple[Term, ...]:
    """Return the terms of an expression."""
    found = []
    for text in expression.removeprefix("=").split("+"):
        product, *divisors = text.split("/")
        number, above, below = Fraction(1), [], []
        for factor in product.split("*"):
            if factor.lstrip("-").isdecimal():
                number *= int(factor)
            else:
                above.append(factor)
        for factor in divisors:
            if factor.isdecimal():
                number /= int(factor)
            else:
                below.append(factor)
        found.append(Term(number, tuple(above), tuple(below)))
    return tuple(found)


def value(expression: str, sizes: Mapping[str, int]) -> int:
    """Return the value of an expression.

    Raises:
        ValueError: it is no whole number.
    """
    total = Fraction(0)
    for number, above, below in terms(expression):
        for name in above:
            number *= sizes[name]
        for name in below:
            number /= sizes[name]
        total += number
    if total.denominator != 1:
        raise ValueError(f"{expression.removeprefix('=')} is no whole number for {dict(sizes)}")
    return int(total)


def evaluated(tree: Any, sizes: Mapping[str, int]) -> Any:
    """Return ``tree``, of lists and dictionaries, with values instead of expressions."""
    if isinstance(tree, str):
        return value(tree, sizes) if tree.startswith("=") else tree
    if isinstance(tree, list):
        return [evaluated(each, sizes) for each in tree]
    if isinstance(tree, dict):
        return {key: evaluated(each, sizes) for key, each in tree.items()}
    return tree
