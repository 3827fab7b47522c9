"""The one kind of error that a user can cause, and the nearest valid choice to what they wrote."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NEAR = 4
"""Names that are offered for one word."""


class UserError(Exception):
    """Bad input: its text is one line that says what is wrong, where, and how to mend it.

    The command line prints it and exits with code 2; anything else that escapes is a bug and shows a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def did_you_mean(word: str, choices: Iterable[str], *, say_all_up_to: int = 8) -> str:
    """Return a clause that names the nearest of ``choices`` to ``word``, or all of them where they are few.

    Nearest are the names that begin with ``word``, in their own order, or of more than a few the one most alike;
    without any, the one most alike of all. Only letters and digits are compared.
    """
    names = list(choices)
    bare = {_bare(name): name for name in names}
    begun = [name for name in bare if _bare(word) and name.startswith(_bare(word))]
    near = begun if len(begun) <= MOST_NEAR else []
    near = near or difflib.get_close_matches(_bare(word), sorted(begun or bare), n=1, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(bare[name] for name in near)}?"
    names.sort()
    if len(names) <= say_all_up_to:
        return f"choose from {', '.join(names)}"
    return f"{len(names)} are known, such as {', '.join(names[:3])}"


def _bare(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()
