"""The parts of an explanation."""

from __future__ import annotations

from msgspec import Struct

from lorabench.estimator.explanation.letters import Letter


class Line(Struct, frozen=True):
    """One term: ``formula`` = ``values`` = ``bytes``."""

    what: str
    formula: str
    """In the letters of `Explanation.symbols`."""
    values: str
    """The formula with this recipe's numbers."""
    bytes: int
    source: str
    """The library, and its behaviour."""


class Derivation(Struct, frozen=True):
    """The lines of one subject."""

    title: str
    lines: tuple[Line, ...]
    component: str | None = None
    """Name of `COMPONENTS` if the lines add up to that component at the peak."""
    remark: str = ""


class Explanation(Struct, frozen=True):
    """The derivation of one estimate."""

    symbols: tuple[Letter, ...]
    sections: tuple[Derivation, ...]
