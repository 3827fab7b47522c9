"""The error for wrong user input, and the valid choice nearest to a misspelt word."""

from __future__ import annotations

from collections.abc import Iterable

from lorabench.estimator.foreign_text import LONGEST_QUOTE, printable

LONGEST_MESSAGE = 2000
"""Most characters of an error's text, which may hold paths, lists of names, and messages of libraries."""
MOST_NEAR = 4
"""Most names that a suggestion lists."""


class UserError(Exception):
    """Wrong user input. The text is one printable line: the place, the mistake, and a remedy.

    The command line prints it and exits with code 2. Any other exception that reaches it is a bug, with a traceback.
    """

    def __init__(self, message: str) -> None:
        line = printable(message)
        half = LONGEST_MESSAGE // 2  # the beginning has the place, the end the remedy
        super().__init__(line if len(line) <= LONGEST_MESSAGE else f"{line[:half]}…{line[-half:]}")


class NoClosedForm(UserError):  # noqa: N818 - it says what there is not
    """The closed form cannot say a recipe on its model; a trace may."""


def did_you_mean(word: str, choices: Iterable[str], *, say_all_up_to: int = 8) -> str:
    """Return a clause with the choices nearest to ``word``, or with all choices if there are at most ``say_all_up_to``.

    Nearest are the choices that begin with ``word``, if there are at most `MOST_NEAR`. If there are more, it is the
    most similar one of them; if there are none, the most similar of all choices. Only letters and digits are compared.
    """
    import difflib  # slow to import, and needed for errors only

    word = word[:LONGEST_QUOTE]
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
