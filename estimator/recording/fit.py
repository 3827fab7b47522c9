"""Find what the sizes in a recording are made of: products of the config's sizes, of batch and length, and their sums.

A recording is a tree of lists, dictionaries and numbers. It is made once for the sizes of a config, and once more for
each size changed, to its double or its half. How a number changes says which sizes are in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations, product
from typing import Any, NamedTuple

MOST_FACTORS = 3
MOST_TERMS = 3


class Unlike(Exception):  # noqa: N818 - it says how two recordings differ
    """Two recordings differ in more than sizes."""


class Changed(NamedTuple):
    """What was recorded with one size changed."""

    tree: Any
    factor: Fraction = Fraction(2)
    """What the size was multiplied by."""


def fit(base: Any, sizes: Mapping[str, int], changed: Mapping[str, Changed]) -> Any:
    """Return ``base`` with expressions instead of the numbers that depend on ``sizes``.

    Args:
        base: the tree that was recorded for ``sizes``.
        sizes: size by name.
        changed: the tree with each size changed, by its name.

    Raises:
        Unlike: the trees differ in more than numbers, or a number is no such expression.
    """
    known: dict[tuple[int, ...], int | str] = {}
    factors = {name: each.factor for name, each in changed.items()}
    return _fit(base, [each.tree for each in changed.values()], sizes, factors, known)


def _fit(
    base: Any, others: Sequence[Any], sizes: Mapping[str, int], factors: Mapping[str, Fraction], known: Any
) -> Any:
    if isinstance(base, dict):
        if any(not isinstance(other, dict) or other.keys() != base.keys() for other in others):
            raise Unlike("keys")
        return {
            key: _fit(value, [other[key] for other in others], sizes, factors, known) for key, value in base.items()
        }
    if isinstance(base, list | tuple):
        if any(not isinstance(other, list | tuple) or len(other) != len(base) for other in others):
            raise Unlike(f"lists: {str(base)[:80]}")
        return [_fit(value, list(of), sizes, factors, known) for value, *of in zip(base, *others, strict=True)]
    if isinstance(base, bool) or not isinstance(base, int):
        if any(other != base for other in others):
            raise Unlike(f"{base!r} against {next(other for other in others if other != base)!r}")
        return base
    if any(isinstance(other, bool) or not isinstance(other, int) for other in others):
        raise Unlike(f"{base!r}")
    key = (base, *others)
    if key not in known:
        known[key] = _expression(base, dict(zip(factors, others, strict=True)), sizes, factors)
    return known[key]


def _expression(
    base: int, changed: Mapping[str, int], sizes: Mapping[str, int], factors: Mapping[str, Fraction]
) -> int | str:
    changes = {name: value - base for name, value in changed.items() if value != base}
    if not changes:
        return base
    exponents = {}
    for name in changes:
        ratio, factor = Fraction(changed[name], base) if base else Fraction(0), factors[name]
        exponents[name] = {factor: 1, factor**2: 2, 1 / factor: -1}.get(ratio)
    if all(exponents.values()):
        term = {name: exponent for name, exponent in exponents.items() if exponent}
        number = Fraction(base) / _value(term, sizes)
        part = "S" in term and number.denominator != 1  # of a sequence, such as its chunks
        return (_in_chunks(base, changed, sizes, factors) if part else None) or "=" + _written(number, term)
    candidates: list[dict[str, int]] = [{}]
    for count in range(1, min(MOST_FACTORS, len(changes)) + 1):
        for names in combinations(changes, count):
            candidates += [
                dict(zip(names, powers, strict=True)) for powers in product((1, -1), repeat=count) if 1 in powers
            ]
    for count in range(2, MOST_TERMS + 1):
        for terms in combinations(candidates, count):
            if set().union(*terms) != set(changes):
                continue
            coefficients = _solved(terms, base, changes, sizes, factors)
            if coefficients is not None:
                return "=" + "+".join(_written(n, term) for n, term in zip(coefficients, terms, strict=True))
    found = _in_chunks(base, changed, sizes, factors) if "S" in sizes else None
    if found is None:
        raise Unlike(f"{base} is no sum of products of sizes: {changes}")
    return found


CHUNK_NAMES = ("chunk", "block_size")
"""Parts of the names of sizes that are the tokens of a scan's chunk."""
CHUNK = 64
"""Tokens of a chunk in functions that do not take them from the config."""


def _in_chunks(
    base: int, changed: Mapping[str, int], sizes: Mapping[str, int], factors: Mapping[str, Fraction]
) -> str | None:
    """Return ``base`` as an expression of the number of chunks of the sequence; None if it is no such expression."""
    named = [name for name in sizes if any(part in name for part in CHUNK_NAMES)]
    settings = [{**sizes}, *({**sizes, name: int(sizes[name] * factors[name])} for name in changed)]
    values = [base, *changed.values()]
    for chunk in (*named, str(CHUNK)):
        chunks = [-(-each["S"] // each.get(chunk, CHUNK)) for each in settings]
        padding = [n * each.get(chunk, CHUNK) - each["S"] for n, each in zip(chunks, settings, strict=True)]
        if values == padding:
            return f"={chunk}*chunks({chunk})+-1*S"
        for less in range(-3, 4):
            if values == [n + less for n in chunks]:
                return f"=chunks({chunk})" + (f"+{less}" if less else "")
        factor = Fraction(base, chunks[0])
        multiplied = [name for name in changed if name not in ("S", chunk) and changed[name] != base]
        products = [n * factor for n in chunks]
        for name in multiplied:
            products = [n * Fraction(each[name], sizes[name]) for n, each in zip(products, settings, strict=True)]
        if values == products:
            own = factor
            for name in multiplied:
                own /= sizes[name]
            if own.denominator == 1:
                return "=" + "*".join([str(own), f"chunks({chunk})", *multiplied])
    return None


def _value(term: Mapping[str, int], sizes: Mapping[str, int]) -> Fraction:
    value = Fraction(1)
    for name, exponent in term.items():
        value *= Fraction(sizes[name]) ** exponent
    return value


def _solved(
    terms: Sequence[Mapping[str, int]],
    base: int,
    changes: Mapping[str, int],
    sizes: Mapping[str, int],
    factors: Mapping[str, Fraction],
) -> list[Fraction] | None:
    """Return the coefficient of each term, if they give ``base`` and all ``changes``."""
    values = [_value(term, sizes) for term in terms]
    rows = [(values, Fraction(base))]
    for name, change in changes.items():
        shares = [factors[name] ** term.get(name, 0) - 1 for term in terms]
        rows.append(([value * share for value, share in zip(values, shares, strict=True)], Fraction(change)))
    matrix = [[*row, right] for row, right in rows]
    width, at = len(terms), 0
    for column in range(width):
        pivot = next((number for number in range(at, len(matrix)) if matrix[number][column]), None)
        if pivot is None:
            return None
        matrix[at], matrix[pivot] = matrix[pivot], matrix[at]
        matrix[at] = [each / matrix[at][column] for each in matrix[at]]
        for number in range(len(matrix)):
            if number != at and matrix[number][column]:
                by = matrix[number][column]
                matrix[number] = [each - by * top for each, top in zip(matrix[number], matrix[at], strict=True)]
        at += 1
    if any(row[-1] for row in matrix[at:]):
        return None
    found = [row[-1] for row in matrix[:at]]
    return found if all(each and each.denominator <= 8 for each in found) else None


def _written(n: Fraction, term: Mapping[str, int]) -> str:
    above = [name for name, exponent in term.items() for _ in range(max(exponent, 0))]
    below = [name for name, exponent in term.items() for _ in range(max(-exponent, 0))]
    if n.denominator > 2**14:
        raise Unlike(f"{n}")
    text = "*".join([str(n.numerator), *above]) if n.numerator != 1 or not above else "*".join(above)
    return "/".join([text, *([str(n.denominator)] if n.denominator != 1 else []), *below])
