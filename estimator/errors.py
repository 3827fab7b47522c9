"""The one kind of error that a user can cause, and the nearest valid choice to what they wrote."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: its text is one line that says what is wrong, where, and how to mend it.

    The command line prints it and exits with code 2; anything else that escapes is a bug and shows a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def did_you_mean(word: str, choices: Iterable[str], *, say_all_up_to: int = 8) -> str:
    """Return a clause that names the nearest of ``choices`` to ``word``, or all of them where they are few."""
    names = sorted(choices)
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"did you mean {lowered[near[0]]}?"
    if len(names) <= say_all_up_to:
        return f"choose from {', '.join(names)}"
    return f"{len(names)} are known, such as {', '.join(names[:3])}"
