"""Record the estimator's arithmetic, so the page's scripts can run it and each formula exists only in Python.

A function of the estimator is called with `Unknown`s instead of numbers. Each operation on them is recorded as a step.
`js/expressions.js` runs the steps with the numbers that the reader chooses.

The alternative is a grid of results. The page offers 256 batch sizes, 1,024 lengths, 10 ranks and 6 recipes: 16 million
results for each model and class of GPU. A coarser grid would need interpolation, which is not exact. The programs of
one model take 296 kB, 20 kB compressed (Llama-3.1-8B, November 2026).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

OPERATIONS = (
    *("add", "sub", "mul", "truediv", "floordiv", "neg", "abs", "gt", "ge", "le"),
    *("maximum", "minimum", "ceil", "floor"),
)
"""Operations that `js/expressions.js` supports."""

Step = tuple[Any, ...]
"""An operation with the indices of its operands' steps; or ``variable`` with its name, ``constant`` with its value."""
Number = Any
"""A known int or float, or an `Unknown`."""


class Unknown:
    """A number that is unknown until the program runs."""

    __slots__ = ("place", "program")

    def __init__(self, program: Program, place: int) -> None:
        self.program = program
        self.place = place

    def _do(self, operation: str, *operands: Number) -> Unknown:
        return self.program.record(operation, *operands)

    def __add__(self, other: Number) -> Unknown:
        return self._do("add", self, other)

    def __radd__(self, other: Number) -> Unknown:
        return self._do("add", other, self)

    def __sub__(self, other: Number) -> Unknown:
        return self._do("sub", self, other)

    def __rsub__(self, other: Number) -> Unknown:
        return self._do("sub", other, self)

    def __mul__(self, other: Number) -> Unknown:
        return self._do("mul", self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Number) -> Unknown:
        return self._do("floordiv", self, other)

    def __truediv__(self, other: Number) -> Unknown:
        return self._do("truediv", self, other)

    def __rtruediv__(self, other: Number) -> Unknown:
        return self._do("truediv", other, self)

    def __neg__(self) -> Unknown:
        return self._do("neg", self)

    def __abs__(self) -> Unknown:
        return self._do("abs", self)

    def __gt__(self, other: Number) -> Unknown:
        return self._do("gt", self, other)

    def __ge__(self, other: Number) -> Unknown | int:
        return 0 if other == math.inf else self._do("ge", self, other)  # JSON has no infinity

    def __le__(self, other: Number) -> Unknown:
        return self._do("le", self, other)

    def __eq__(self, other: object) -> Any:
        return self._do("eq", self, other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self.program.decide(self)

    def __array_ufunc__(self, ufunc: Any, method: str, *operands: Number, **options: Any) -> Any:
        """Record a numpy function."""
        return self._do(ufunc.__name__, *operands)


class Program:
    """A sequence of distinct steps."""

    def __init__(self) -> None:
        self._places: dict[Step, int] = {}
        self._path: list[tuple[int, bool]] = []
        """Conditions in the order of evaluation, with their assumed outcomes."""
        self._asked = 0

    def variable(self, name: str) -> Unknown:
        """Return the variable ``name`` of the page's scripts."""
        return Unknown(self, self._place(("variable", name)))

    def record(self, operation: str, *operands: Number) -> Unknown:
        """Record a step."""
        return Unknown(self, self._place((operation, *map(self.place_of, operands))))

    def place_of(self, number: Number) -> int:
        """Return the index of the step that computes ``number``."""
        if isinstance(number, Unknown):
            return number.place
        return self._place(("constant", int(number) if isinstance(number, bool) else number))

    def _place(self, step: Step) -> int:
        return self._places.setdefault(step, len(self._places))

    def decide(self, condition: Unknown) -> bool:
        """Return the outcome that is assumed for ``condition`` in this run."""
        if self._asked == len(self._path):
            self._path.append((condition.place, True))
        self._asked += 1
        return self._path[self._asked - 1][1]

    def decisions(self, ask: Callable[[], Any], known: Sequence[tuple[int, bool]] = ()) -> Any:
        """Return the result of ``ask``, or ``{"if": step, "then": …, "else": …}`` if it depends on a condition."""
        self._path, self._asked = list(known), 0
        answer = ask()
        if len(self._path) == len(known):
            return answer
        place, _ = self._path[len(known)]
        return {
            "if": place,
            "then": self.decisions(ask, [*known, (place, True)]),
            "else": self.decisions(ask, [*known, (place, False)]),
        }

    def steps(self, needed: Sequence[int]) -> list[Step | None]:
        """Return the steps in order, with None for steps that the ``needed`` ones do not use."""
        steps = list(self._places)
        wanted = set(needed)
        for place in reversed(range(len(steps))):
            operation, *operands = steps[place]
            if place in wanted and operation not in ("variable", "constant"):
                assert operation in OPERATIONS, operation
                wanted.update(operands)
        return [step if place in wanted else None for place, step in enumerate(steps)]
