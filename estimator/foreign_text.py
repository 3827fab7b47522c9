"""Make text from outside safe to print: from files, arguments, paths, libraries and other processes."""

from __future__ import annotations

from reprlib import Repr

LONGEST_QUOTE = 80
"""Most characters of a foreign text that a message quotes."""
_TAB = 4


def printable(text: str) -> str:
    """Return ``text`` as one line without control characters, safe for terminals, XML and logs."""
    return _without_controls(" ".join(text.split()))


def printable_lines(text: str) -> str:
    """Return ``text`` with its lines and spaces, but without other control characters."""
    return text if text.isascii() and text.replace("\n", "").isprintable() else _cleaned(text)


def quoted(value: object) -> str:
    """Return ``value`` as Python writes it, with at most `LONGEST_QUOTE` characters."""
    try:
        written = _SHORT.repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a number of thousands of digits"
    return written if len(written) <= LONGEST_QUOTE else f"{written[: LONGEST_QUOTE - 3]}..."


def _cleaned(text: str) -> str:
    lines = text.expandtabs(_TAB).split("\n")
    return "\n".join(_without_controls(line.removesuffix("\r")) for line in lines)


def _without_controls(line: str) -> str:
    return line if line.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in line)


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONGEST_QUOTE
