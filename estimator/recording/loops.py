"""Find the loops in a recording, and write each as one statement.

A scan over chunks of a sequence, or over its tokens, calls the same functions again and again. A loop's iterations are
alike if each reads what is from before the loop, or what the iteration before it made in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

FEWEST = 3
"""Alike iterations that make a loop."""
LONGEST = 256
"""Statements of an iteration, at most."""


class Value(NamedTuple):
    """A tensor of the recording."""

    number: int


class Statement(NamedTuple):
    """One call, or ``del`` of its results."""

    function: str
    results: tuple[Value, ...]
    positional: Any = ()
    named: Any = {}  # noqa: RUF012 - nobody writes into it


class _Run(NamedTuple):
    """Iterations that are alike."""

    start: int
    """The first statement."""
    length: int
    """Statements of an iteration."""
    times: int
    """Iterations."""
    values: int
    """Values that an iteration makes."""
    first: int
    """The first value that the first iteration makes."""

    @property
    def end(self) -> int:
        return self.start + self.length * self.times

    def iteration(self, number: int) -> int | None:
        """Return the iteration that makes a value; None if none does."""
        iteration = (number - self.first) // self.values
        return iteration if 0 <= iteration < self.times else None


def folded(statements: Sequence[Statement]) -> list[Statement]:
    """Return ``statements`` with its longest loop as one statement, if it has one: ``loop`` of the number of
    iterations, the first one's statements, and pairs of values: one that an iteration makes, and the one of the
    iteration before it that the next iteration reads in its place.

    After the loop, a value of the last iteration has the number of the first one's. A list of the values of all
    iterations is written as ``each`` and that number.
    """
    run = _longest(statements)
    if run is None:
        return [*statements]
    body = statements[run.start : run.start + run.length]
    second = statements[run.start + run.length : run.start + 2 * run.length]
    carried = sorted(
        {
            (w.number, v.number)
            for one, other in zip(body, second, strict=True)
            for v, w in zip(_values(one), _values(other), strict=True)
            if v != w and v.number < run.first
        }
    )
    after = [_after(statement, run) for statement in statements[run.end :]]
    gathered = {number for statement in after for number in _gathered(statement.positional)}
    loop = Statement("loop", (), [run.times, list(body), [[Value(new), Value(old)] for new, old in carried]])
    keep = [Statement("collect", (Value(number),)) for number in sorted(gathered)]
    rest: list[Statement] = []
    for statement in after:
        if not (statement.function == "del" and statement in rest[-1:] and statement.results[0].number in gathered):
            rest.append(statement)
    return [*statements[: run.start], *keep, loop, *rest]


def _longest(statements: Sequence[Statement]) -> _Run | None:
    """Return the iterations that take the most statements; the shortest ones of these."""
    earliest = min((v.number for each in statements if each.function != "del" for v in each.results), default=0)
    numbers = (max((v.number + 1 for v in each.results), default=0) for each in statements)
    made = [*accumulate(numbers, max, initial=earliest)]
    words = [(each.function, len(each.results)) for each in statements]
    best: _Run | None = None
    for length in range(2, min(LONGEST, len(statements) // FEWEST) + 1):
        start = 0
        while start + FEWEST * length <= len(statements):
            if words[start] != words[start + length] or words[start + 1] != words[start + 1 + length]:
                start += 1
                continue
            at = start
            values = made[start + length] - made[start]
            while (
                at + length < len(statements)
                and values > 0
                and made[at + length] - made[at] == values
                and _alike(statements[at], statements[at + length], values, made[start])
            ):
                at += 1
            count = (at - start) // length + 1
            if count >= FEWEST and (best is None or count * length > best.times * best.length):
                best = _Run(start, length, count, values, made[start])
            start = max(start + 1, at - length + 1) if count >= FEWEST else start + 1
    return best


def _alike(one: Statement, other: Statement, values: int, first: int) -> bool:
    """Return whether ``other`` does in an iteration what ``one`` does in the iteration before it."""

    def alike(a: Any, b: Any) -> bool:
        if isinstance(a, Value):
            same = a.number < first and b == a
            return isinstance(b, Value) and (same or b.number == a.number + values)
        if isinstance(a, list | tuple):
            return isinstance(b, list | tuple) and len(a) == len(b) and all(map(alike, a, b))
        if isinstance(a, dict):
            return isinstance(b, dict) and a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
        return bool(a == b)

    return one.function == other.function and all(map(alike, one[1:], other[1:]))


def _values(tree: Any) -> list[Value]:
    """Return all values in a statement."""
    if isinstance(tree, Value):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [value for each in tree for value in _values(each)] if isinstance(tree, list | tuple) else []


def _after(statement: Statement, run: _Run) -> Statement:
    """Return a statement that follows the loop."""

    def renamed(tree: Any) -> Any:
        if isinstance(tree, Value):
            iteration = run.iteration(tree.number)
            return tree if iteration is None else Value(tree.number - iteration * run.values)
        if isinstance(tree, list | tuple):
            parts, at = [], 0
            while at < len(tree):
                if isinstance(tree[at], Value) and run.iteration(tree[at].number) == 0:
                    every = [Value(tree[at].number + number * run.values) for number in range(run.times)]
                    if list(tree[at : at + run.times]) == every:
                        parts.append(["each", tree[at]])
                        at += run.times
                        continue
                parts.append(renamed(tree[at]))
                at += 1
            return parts
        if isinstance(tree, dict):
            return {key: renamed(value) for key, value in tree.items()}
        return tree

    results = tuple(renamed(statement.results))
    if statement.function == "del":
        return Statement("del", results)
    return Statement(statement.function, results, renamed(statement.positional), renamed(statement.named))


def _gathered(tree: Any) -> list[int]:
    """Return the values of which all iterations' are read."""
    if isinstance(tree, list):
        if len(tree) == 2 and tree[0] == "each" and isinstance(tree[1], Value):
            return [tree[1].number]
        return [number for each in tree for number in _gathered(each)]
    return []
