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


def read_command(text: str, source: str) -> dict[str, Any]:
    """Return the arguments of the first training command in ``text`` by name, with the tool under `TOOL_KEY`.

    An argument with several values is a list; one without a value is ``""``.

    Raises:
        UserError: no command has arguments; quotes are not closed; a variable is not set in the file.
    """
    variables: dict[str, str] = {}
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        if found := re.fullmatch(ASSIGNMENT, line.strip()):
            variables[found[1]] = _filled(found[2].strip().strip("\"'"), variables)
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{source}: not a command ({error}): write one command with its arguments") from error
        words = [_filled(word, variables) for word in words]
        if any(word.startswith("--") for word in words):
            return _read(words, source)
    raise UserError(f"{source}: no command with arguments: write the command of a training")


def _filled(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], found[0]), word)


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
