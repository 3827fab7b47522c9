"""Texts of errors and ended processes, for records and terminals."""

from __future__ import annotations

import os
import signal
import sysconfig


def name_end(exit_code: int) -> str:
    """Return how a process ended, in words. Negative codes are signals."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-exit_code}"


def without_own_folders(text: str) -> str:
    """Return ``text`` without the paths of Python's installation and the user's home, since records are shared."""
    for name in ("purelib", "platlib", "stdlib"):
        text = text.replace(sysconfig.get_path(name) + os.sep, "")
    home = os.path.expanduser("~")  # noqa: PTH111  # Path.home() fails if none is known
    return text.replace(home + os.sep, "~" + os.sep)


def first_line(text: str) -> str:
    """Return the first line of an error's text, cut to 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
