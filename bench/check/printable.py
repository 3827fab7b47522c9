"""Text from records, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` as one line that no terminal, XML or log takes for a command."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
