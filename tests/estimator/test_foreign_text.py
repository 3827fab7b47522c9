"""Foreign text is printed without what a terminal acts on, and quoted in short."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from lorabench.estimator.errors import LONGEST_MESSAGE, UserError, did_you_mean
from lorabench.estimator.foreign_text import LONGEST_QUOTE, printable, printable_lines, quoted

TEXT = st.text(st.characters(codec=None))
"""All of Unicode, with half surrogate pairs."""


def acted_on(text: str) -> list[str]:
    """Return the characters that are controls, formats (such as those that change the direction), or no characters."""
    return [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]


@given(TEXT)
def test_a_name_becomes_one_line_that_no_terminal_acts_on(text: str) -> None:
    assert not acted_on(printable(text))
    assert printable(printable(text)) == printable(text)


@given(TEXT)
def test_a_text_keeps_its_lines(text: str) -> None:
    shown = printable_lines(text)
    assert set(acted_on(shown)) <= {"\n"}
    assert shown.count("\n") == text.count("\n")


def test_what_is_printable_stays_as_it_is() -> None:
    text = "  4×512 · 3,1 µs – größer  "
    assert printable_lines(f"{text}\n{text}") == f"{text}\n{text}"
    assert printable(text) == "4×512 · 3,1 µs – größer"


def test_escapes_are_shown_as_unknown_and_tabs_as_spaces() -> None:
    assert printable("a\x1b]0;pwn\x07b\x9b2J\u202ec") == "a�]0;pwn�b�2J�c"
    assert printable_lines("a\tb\r\nc") == "a   b\nc"


def test_a_quote_is_short() -> None:
    assert quoted("llama") == "'llama'"
    assert quoted(3) == "3"
    for value in ("x" * 10**6, "\x1b" * 10**6, 10**1000, 10**10_000, [["x" * 100] * 100] * 100, {1: "x" * 1000}):
        assert len(quoted(value)) <= LONGEST_QUOTE


def test_an_error_is_one_printable_line_of_bounded_length() -> None:
    said = str(UserError("a\x1b[2J\nb" + "c" * 10**6 + ": mend it"))
    assert said.startswith("a�[2J bccc")
    assert said.endswith("ccc: mend it")
    assert len(said) == LONGEST_MESSAGE + 1


def test_a_long_word_is_compared_in_short() -> None:
    assert did_you_mean("llama" * 10**6, ["llama", "gemma"]) == "choose from gemma, llama"
