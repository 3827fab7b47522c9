"""Lengths are in units of 1024, counts in thousands."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.estimator.errors import UserError
from lorabench.estimator.written_numbers import read_count, read_length


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("4096", 4096), ("4k", 4096), (" 4 K ", 4096), ("1.5k", 1536), ("128k", 131072), ("1M", 1048576), ("4_096", 4096)],
)
def test_a_length_is_in_units_of_1024(text: str, tokens: int) -> None:
    assert read_length(text) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("4096", 4096), ("300k", 300_000), ("10M", 10**7), ("1B", 10**9), ("1e9", 10**9), ("1.5b", 15 * 10**8)],
)
def test_a_count_is_in_thousands(text: str, tokens: int) -> None:
    assert read_count(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "long", "4kk", "0.3k", "4.5", "1e3", "4 KiB", "nan", "四"])
def test_what_is_no_length_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(UserError, match="is not a length: write whole tokens, such as 4096, or 4k \\(k is 1024\\)"):
        read_length(text)


@pytest.mark.parametrize(
    ("text", "said"), [("-5", "is not a number of tokens"), ("0", "is not a"), ("9e15", "from 1 to")]
)
def test_what_is_no_count_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_count(text)


@given(st.text(max_size=40) | st.from_regex(r"-?[0-9_,.]{1,60}[kKmMbBe]?[0-9]{0,3}", fullmatch=True))
def test_no_text_gives_another_error_than_a_user_error(text: str) -> None:
    for read in (read_length, read_count):
        with contextlib.suppress(UserError):
            assert isinstance(read(text), int)
