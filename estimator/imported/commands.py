"""Read the command that starts a training: its arguments are the keys of the tool's config.

The command is never run. Variables that the same file sets are put in; no other expansion of a shell is done.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.reading import TOOL_KEY

PROGRAMS = {"llamafactory-cli": "LLaMA-Factory", "lmf": "LLaMA-Factory", "trl": "TRL"}
"""Program → tool whose keys its arguments are. Scripts that parse classes of TRL and transformers are TRL's."""
TRAINERS = ("sft", "dpo", "kto", "orpo", "cpo", "grpo", "rloo", "reward", "ppo", "gkd", "online_dpo", "bco", "prm")
ASSIGNMENT = r"(?:export\s+)?([A-Za-z_]\w*)=(.*)"


LONGEST = 2**15
"""Most characters of a command's file, and of all values put in for variables. shlex takes time for their square."""


def read_command(text: str, source: str) -> dict[str, Any]:
    """Return the arguments of the first training command in ``text`` by name, with the tool under `TOOL_KEY`.

    An argument with several values is a list; one without a value is ``""``.

    Raises:
        UserError: no command has arguments; quotes are not closed; a variable is not set in the file; the text is
            longer than `LONGEST`.
    """
    if len(text) > LONGEST:
        raise UserError(f"{source}: longer than {LONGEST:,} characters: write one command with its arguments")
    variables = _Variables(source)
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        if found := re.fullmatch(ASSIGNMENT, line.strip()):
            variables.values[found[1]] = variables.put_into(found[2].strip().strip("\"'"))
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{source}: not a command ({error}): write one command with its arguments") from error
        words = [*map(variables.put_into, words)]
        if any(word.startswith("--") for word in words):
            return _read(words, source)
    raise UserError(f"{source}: no command with arguments: write the command of a training")


class _Variables:
    """The variables that a file sets."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.values: dict[str, str] = {}
        self.room = LONGEST

    def put_into(self, word: str) -> str:
        """Return ``word`` with the values of its variables."""
        return re.sub(r"\$\{?(\w+)\}?", self._value, word)

    def _value(self, found: re.Match[str]) -> str:
        value = self.values.get(found[1], found[0])
        self.room -= len(value)
        if self.room < 0:
            raise UserError(f"{self.source}: its variables have more than {LONGEST:,} characters: write their values")
        return value


def _read(words: list[str], source: str) -> dict[str, Any]:
    config: dict[str, Any] = dict(_arguments(words))
    unset = next((value for value in config.values() if isinstance(value, str) and value.startswith("$")), None)
    if unset is not None:
        raise UserError(f"{source}: {unset} is not set in the file: write its value")
    before = [word.rpartition("/")[2] for word in words if not word.startswith("-")]
    tool = next((tool for program, tool in PROGRAMS.items() if program in before), "TRL")
    config[TOOL_KEY] = tool
    if tool == "TRL":
        trainer = next((word for word in before if word.removesuffix(".py") in TRAINERS), None)
        config.setdefault("trainer", None if trainer is None else trainer.removesuffix(".py"))
    return config


def _arguments(words: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the name of each argument with dashes as underscores, and its value or values."""
    name, values = None, []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            if name is not None:
                yield name, _value(values)
            name, equals, value = word.lstrip("-").partition("=")
            name, values = name.replace("-", "_"), [value] if equals else []
        elif name is not None and not word.endswith(".py"):
            values.append(word)
    if name is not None:
        yield name, _value(values)


def _value(values: list[str]) -> Any:
    return "" if not values else values[0] if len(values) == 1 else values
