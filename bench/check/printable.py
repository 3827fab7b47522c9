"""Make text from records safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` as one line without control characters, safe for terminals, XML and logs."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
