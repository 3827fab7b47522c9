"""Shapes and strides of tensors, which decide whether an operation is a view or a copy.

A dimension is a number times a product of symbols, such as 1 · S. Strides are numbers, for a batch and a length that
stand for all others: only their order and their ratios matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache, reduce
from typing import NamedTuple

from lorabench.estimator.closed_form.sizes import (
    ONE,
    B,
    Monomial,
    S,
    Symbol,
    chunks_and_more,
    chunks_of_length,
    extra_tokens,
    filled_chunk,
    filling,
    longer,
    of_symbol,
)

LENGTH = 1009
"""The length that stands for all others, a prime that is no size of a model."""


MOST_LAYOUTS = 2**14
"""Layouts that are remembered: the iterations of a scan ask for the same ones again and again."""


class Unsupported(Exception):  # noqa: N818 - it says what a program needs
    """A program needs something that the closed form cannot say."""


class Dim(NamedTuple):
    """A number times a product of symbols."""

    n: int
    symbols: Monomial = ONE

    def times(self, other: Dim) -> Dim:
        """Return the product."""
        return Dim(self.n * other.n, self.symbols * other.symbols)

    def divided(self, other: Dim) -> Dim:
        """Return the quotient.

        Raises:
            Unsupported: it is not a dimension.
        """
        symbols = list(self.symbols.symbols)
        for symbol in other.symbols.symbols:
            if symbol not in symbols:
                raise Unsupported(f"{self} is no multiple of {other}")
            symbols.remove(symbol)
        if self.n % other.n:
            raise Unsupported(f"{self} is no multiple of {other}")
        return Dim(self.n // other.n, reduce(lambda a, b: a * b, map(of_symbol, symbols), ONE))

    def plus(self, other: Dim) -> Dim:
        """Return the sum.

        Raises:
            Unsupported: it is not a dimension.
        """
        if self.symbols is other.symbols:
            return Dim(self.n + other.n, self.symbols)
        first, second = longer_by(self), longer_by(other)
        if first is not None and other.symbols is ONE:
            return Dim(1, longer(first + other.n))
        if second is not None and self.symbols is ONE:
            return Dim(1, longer(second + self.n))
        if first is not None and other == Dim(-1, S):
            return Dim(first)
        chunks, filled = chunks_and_more(self.symbols), filled_chunk(other.symbols)
        if chunks is not None:
            if other == Dim(-1, S) and (self.n, 0) == chunks:
                return Dim(1, filling(self.n))
            if self.n == 1 and other.symbols is ONE:
                return Dim(1, chunks_of_length(chunks[0], chunks[1] + other.n))
        if self.symbols is ONE and chunks_and_more(other.symbols) is not None:
            return other.plus(self)
        if filled is not None and self == Dim(1, S):
            return Dim(filled, chunks_of_length(filled))
        raise Unsupported(f"the sum of {self} and {other}")


def as_dim(size: Dim | int) -> Dim:
    """Return a dimension, or a number as one."""
    return size if isinstance(size, Dim) else Dim(size)


def longer_by(dim: Dim) -> int | None:
    """Return c of a dimension S + c; None if ``dim`` is no such sum."""
    return extra_tokens(dim.symbols) if dim.n == 1 else None


UNIT = Dim(1)
Shape = tuple[Dim, ...]
Strides = tuple[int, ...]


class Layout(NamedTuple):
    """Shape and strides of a tensor, as numbers."""

    shape: tuple[int, ...]
    strides: Strides

    def dense(self) -> Layout:
        """Return the layout of an elementwise function of such a tensor."""
        return Layout(self.shape, elementwise(self.shape, self))


def elements(shape: Sequence[Dim]) -> Dim:
    """Return the number of elements of ``shape``."""
    return _product(tuple(shape))


@cache
def _product(shape: Shape) -> Dim:
    return reduce(Dim.times, shape, UNIT)


class Sizes:
    """Shapes as numbers, for a batch of one or of several sequences, and a ``length`` that stands for others."""

    def __init__(self, several: bool, length: int = LENGTH) -> None:
        self.length = length
        self._numbers: dict[Dim, int] = {}
        self._shapes: dict[Shape, tuple[int, ...]] = {}
        self.batch = 2 if several else 1
        self.single = not several

    def number(self, dim: Dim) -> int:
        """Return the number that stands for ``dim``."""
        number = self._numbers.get(dim)
        if number is None:
            number = reduce(lambda product, symbol: product * self._value(symbol), dim.symbols.symbols, dim.n)
            self._numbers[dim] = number
        return number

    def _value(self, symbol: Symbol) -> int:
        monomial = of_symbol(symbol)
        if monomial is B:
            return self.batch
        chunks, filled = chunks_and_more(monomial), filled_chunk(monomial)
        if chunks is not None:
            return -(-self.length // chunks[0]) + chunks[1]
        if filled is not None:
            return -self.length % filled
        extra = extra_tokens(monomial)
        assert extra is not None
        return self.length + extra

    def numbers(self, shape: Shape) -> tuple[int, ...]:
        """Return the numbers that stand for ``shape``."""
        numbers = self._shapes.get(shape)
        if numbers is None:
            numbers = self._shapes[shape] = tuple(map(self.number, shape))
        return numbers

    def same(self, first: Dim, second: Dim) -> bool:
        """Return whether two dimensions are equal."""
        return self.number(first) == self.number(second)


def contiguous(shape: Sequence[int]) -> Strides:
    """Return the strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_contiguous(shape: Sequence[int], strides: Strides) -> bool:
    """Return whether a tensor is contiguous; strides of dimensions of size one do not matter."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != step:
                return False
            step *= size
    return True


def is_dense(shape: Sequence[int], strides: Strides) -> bool:
    """Return whether a tensor has each element once and no gaps (`is_non_overlapping_and_dense`)."""
    step = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != step:
            return False
        step *= size
    return True


@lru_cache(MOST_LAYOUTS)
def elementwise(shape: Sequence[int], *operands: tuple[Sequence[int], Strides]) -> Strides:
    """Return the strides of an elementwise operation's result (`TensorIterator`).

    ``operands``: shape and strides of each. The result keeps their strides if all are equal and dense. Else its
    dimensions have the order of the operands' strides; the first operand whose strides differ and are not 0 decides.
    """
    whole = [strides for of, strides in operands if tuple(of) == tuple(shape)]
    if len(whole) == len(operands) and all(strides == whole[0] for strides in whole) and is_dense(shape, whole[0]):
        return whole[0]
    rank = len(shape)
    spread = []
    for of, strides in operands:
        padded = (*(1,) * (rank - len(of)), *of), (*(0,) * (rank - len(of)), *strides)
        spread.append([0 if size == 1 != full else stride for size, stride, full in zip(*padded, shape, strict=True)])

    def compare(first: int, second: int) -> int:
        for strides in spread:
            a, b = strides[first], strides[second]
            if a == 0 or b == 0:
                continue
            if a != b:
                return 1 if a > b else -1
            if shape[first] > shape[second]:
                return 1
        return 0

    order = list(reversed(range(rank)))  # from the innermost dimension on
    for i in range(1, rank):
        at = i
        for other in range(i - 1, -1, -1):
            comparison = compare(order[other], order[at])
            if comparison > 0:
                order[other], order[at] = order[at], order[other]
                at = other
            elif comparison < 0:
                break
    found, step = [0] * rank, 1
    for dim in order:
        found[dim] = step
        step *= shape[dim]
    return tuple(found)


@lru_cache(MOST_LAYOUTS)
def viewed(shape: Sequence[int], strides: Strides, to: Sequence[int]) -> Strides | None:
    """Return the strides of a view of shape ``to``; None if there is no such view (`computeStride`)."""
    if not shape:
        return (1,) * len(to)
    found: list[int] = [0] * len(to)
    at = len(to) - 1
    base, count, viewed_count = strides[-1], 1, 1
    for dim in reversed(range(len(shape))):
        count *= shape[dim]
        if dim == 0 or (shape[dim - 1] != 1 and strides[dim - 1] != count * base):
            while at >= 0 and (viewed_count < count or to[at] == 1):
                found[at] = viewed_count * base
                viewed_count *= to[at]
                at -= 1
            if viewed_count != count:
                return None
            if dim > 0:
                base, count, viewed_count = strides[dim - 1], 1, 1
    return tuple(found) if at == -1 else None
