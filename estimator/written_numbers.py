"""Numbers in people's spelling: sequence lengths in units of 1024, as in models' names, and counts in thousands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import quoted

if TYPE_CHECKING:
    from fractions import Fraction

LARGEST_COUNT = 10**15
"""A hundred times the training tokens of the largest models: a larger number is a typo."""

_DIGITS = r"[0-9][0-9_,]{0,30}\.?[0-9]{0,30}"
_LENGTH = rf"\s*({_DIGITS})\s*([km]?)\s*"
_COUNT = rf"\s*({_DIGITS}(?:e[0-9]{{1,2}})?)\s*([kmb]?)\s*"
_OF_LENGTHS = {"": 1, "k": 2**10, "m": 2**20}
_OF_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def read_length(text: str) -> int:
    """Return the tokens of a sequence: 4096 for ``4k``, as in models' names, and for ``4096``.

    Raises:
        UserError: it is not a whole number of tokens.
    """
    if re.fullmatch(r"\s*-[0-9]{1,30}\s*", text):
        return int(text)  # the caller checks the range
    match = re.fullmatch(_LENGTH, text, re.IGNORECASE)
    tokens = match and _number(match[1]) * _OF_LENGTHS[match[2].lower()]
    if tokens is None or tokens % 1:
        raise UserError(f"{quoted(text)} is not a length: write whole tokens, such as 4096, or 4k (k is 1024)")
    return int(tokens)


def read_count(text: str) -> int:
    """Return the tokens of a text: 50,000,000 for ``50M``, ``50_000_000`` and ``5e7``.

    Raises:
        UserError: it is not a whole number of tokens, or not from 1 to `LARGEST_COUNT`.
    """
    match = re.fullmatch(_COUNT, text, re.IGNORECASE)
    tokens = match and _number(match[1]) * _OF_COUNTS[match[2].lower()]
    if not tokens or tokens % 1:
        raise UserError(f"{quoted(text)} is not a number of tokens: write one such as 50M, 300k or 1500000")
    if tokens > LARGEST_COUNT:
        raise UserError(f"{quoted(text)}: must be from 1 to {LARGEST_COUNT:,}")
    return int(tokens)


def _number(digits: str) -> Fraction:
    from fractions import Fraction  # most commands read no such number

    return Fraction(digits.replace("_", "").replace(",", ""))
