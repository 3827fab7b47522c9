"""Turn the keys and values of a config into recipe options, by the table of its tool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import Struct

from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import printable
from lorabench.estimator.imported.keys import Key, Keys, Missing, NotTaken, Options
from lorabench.estimator.models.spec import ModelSpec

TOOL_KEY = "(tool)"
"""Key under which a command has the name of its tool."""
MOST_UNKNOWN = 100
"""Most keys of a config that the tool does not know. The nearest known key is looked for, and each is listed."""
MOST_SHOWN = 40
"""Characters of a value that a message shows."""


class Tool(NamedTuple):
    """A tool whose configs can be read."""

    name: str
    read_in: str
    """The version in which its keys, rules and defaults were read."""
    keys: Keys
    model: Callable[[Values], str | None]
    """Returns the model's name or path in a config; None if it names none."""
    recognised: Callable[[Mapping[str, Any]], bool]
    """Whether a mapping is one of its configs."""
    checks: Callable[[Values], None] = lambda values: None
    """Refuses a config that is no training of a language model."""


class Values:
    """The values of a config by key, with the tool's defaults for keys that it leaves out."""

    def __init__(self, tool: Tool, given: Mapping[str, Any], spec: ModelSpec | None = None) -> None:
        """``given``: typed values of the file. ``spec``: the model, once it is known."""
        self._tool, self.given, self._spec = tool, given, spec

    def __getitem__(self, key: str) -> Any:
        value = self.given.get(key)
        return self._tool.keys[key].default if value is None else value

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        assert self._spec is not None
        return self._spec

    def on(self, model: ModelSpec) -> Values:
        """Return the values together with the model that they train."""
        return Values(self._tool, self.given, model)


class Imported(Struct, frozen=True, kw_only=True):
    """What became of a config."""

    file: str
    tool: str
    read_in: str
    """The tool's version whose keys and defaults were applied."""
    model: str
    options: dict[str, Any]
    """Recipe options of the file and of the tool's defaults."""
    not_taken_into_account: tuple[NotTaken, ...]
    without_effect: tuple[str, ...]
    """Keys of the file that change neither memory nor speed."""

    @property
    def headline(self) -> str:
        """What was read, and whether all of it counts, on one line."""
        told = f"{self.file}: a config of {self.tool}, as its version {self.read_in} reads it."
        if self.not_taken_into_account:
            return f"{told} Not taken into account:"
        return f"{told} All its keys are taken into account, or are without effect on memory and speed."

    def remarks(self) -> list[str]:
        """Return what the answer does not take into account, one line each."""
        return [f"{self.file}: not taken into account: {each}" for each in self.not_taken_into_account]


class Config(NamedTuple):
    """A file's config, recognised and with typed values."""

    file: str
    tool: Tool
    values: Values
    unknown: tuple[NotTaken, ...]
    without_effect: tuple[str, ...]

    @property
    def model(self) -> str | None:
        """The name or path of the model; None if the config names none."""
        return self.tool.model(self.values)

    def on(self, spec: ModelSpec) -> Imported:
        """Return the recipe options of the config for the model ``spec``.

        Raises:
            UserError: a value makes the training another one than a recipe can stand for. It names file and key.
        """
        values = self.values.on(spec)
        options: dict[str, Any] = {}
        not_taken = [*self.unknown]
        for key in self.tool.keys:
            for found in self._results(key, values):
                if isinstance(found, Missing):
                    not_taken.append(NotTaken(key, shown(values[key]), printable(found.why), found.memory))
                else:
                    options |= found
        return Imported(
            file=self.file,
            tool=self.tool.name,
            read_in=self.tool.read_in,
            model=spec.name,
            options=options,
            not_taken_into_account=tuple(not_taken),
            without_effect=self.without_effect,
        )

    def _results(self, key: str, values: Values) -> list[Options | Missing]:
        rule, value = self.tool.keys[key].rule, values[key]
        if rule is None:
            return []
        try:
            found = rule(value, values)
        except UserError as error:
            raise UserError(f"{self.file}: {key}: {error}") from error
        except ValueError as error:
            raise UserError(f"{self.file}: {key} must be {error}, got {shown(value)}") from error
        return found if isinstance(found, list) else [found]


def read_values(file: str, tool: Tool, config: Mapping[str, Any]) -> Config:
    """Return ``config`` with typed values.

    Raises:
        UserError: a value has the wrong type, more than `MOST_UNKNOWN` keys are unknown, or the config is no training
            of a language model.
    """
    given: dict[str, Any] = {}
    unknown: list[NotTaken] = []
    idle: list[str] = []
    for name, value in _leaves(config, tool.keys):
        key = _key(name, tool.keys)
        if value is None or name == TOOL_KEY:
            continue
        if key is None:
            if len(unknown) == MOST_UNKNOWN:
                raise UserError(
                    f"{file}: more than {MOST_UNKNOWN} keys that {tool.name} {tool.read_in} does not know, such as "
                    f"{shown(name)}: is it a config of {tool.name}?"
                )
            hint = did_you_mean(name.rpartition(".")[2], tool.keys)
            why = f"no key of {tool.name} {tool.read_in} that is known here"
            near = f"; {hint}" if hint.startswith("did") else ""
            unknown.append(NotTaken(shown(name), shown(value), f"{why}{near}", None))
            continue
        try:
            given[name] = key.read(value)
            if not key.effect:
                idle.append(name)
        except ValueError as error:
            raise UserError(f"{file}: {name} must be {error}, got {shown(value)}") from error
    values = Values(tool, given)
    try:
        tool.checks(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return Config(file, tool, values, tuple(unknown), tuple(idle))


def _leaves(config: Mapping[str, Any], keys: Keys, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key, with dots between levels, and its value. Levels end at the keys of the table."""
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and any(key.startswith(f"{path}.") for key in keys):
            yield from _leaves(value, keys, f"{path}.")
        else:
            yield path, value


def _key(name: str, keys: Keys) -> Key | None:
    """Return the declaration of ``name``, or of the section that it is in, if that is without effect as a whole."""
    section = keys.get(name.rpartition(".")[0])
    return keys.get(name) or (section if section is not None and not section.effect else None)


def shown(value: Any) -> str:
    """Return a value of a file on one line, without control characters, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    said = printable(str(value))
    return said if len(said) <= MOST_SHOWN else f"{said[: MOST_SHOWN - 1]}…"
