"""Read YAML with plain values only, and the line of each value for error messages."""

from __future__ import annotations

import re
from typing import Any

import yaml

from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import quoted

Trail = tuple[str | int, ...]
"""Path of keys and list indices to a value."""


class _PlainLoader(yaml.SafeLoader):
    """Only ``true`` and ``false`` are booleans, and only decimal numbers are numbers; anything else is text.

    PyYAML follows YAML 1.1: it reads ``no`` as false, 010 as 8, 1:30 as 90, and 1e-4 as text.
    """


_PlainLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", "~|null|", ["~", "n", ""]),
    ("bool", "true|false", ["t", "f"]),
    ("int", "[-+]?(0|[1-9][0-9]{0,17})", [*"-+0123456789"]),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
):
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


MOST_VALUES = 20_000
"""Most keys and values of a file. PyYAML reads some 30,000 a second."""
MOST_LEVELS = 20
"""Most lists and mappings inside each other. Some of PyYAML's steps take time for each level."""


def read_plain_yaml(text: str, source: str) -> tuple[Any, dict[Trail, int]]:
    """Return the value of ``text``, and the line of every value in it, from 1.

    Raises:
        UserError: not YAML; a tag or an alias; a key that is not a plain word, or repeated; more than `MOST_VALUES`, or
            nested deeper than `MOST_LEVELS`. The message has ``source`` and line.
    """
    try:
        reader = _Reader(text, source)
        return reader.read(), reader.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context or ""
        how = ": indent with spaces, not tabs" if "'\\t'" in problem else ""
        raise UserError(f"{source}{where}: not YAML: {problem}{how}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {error}") from error


class _Reader:
    """Builds values while the text is parsed, so that what is refused is refused where it begins."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.lines: dict[Trail, int] = {}
        self.loader: Any = _PlainLoader(text)
        self.count = 0

    def read(self) -> Any:
        """Return the value of the only document; None if the text has none."""
        self._next()  # the start of the stream
        if self.loader.check_event(yaml.StreamEndEvent):
            return None
        self._next()  # the start of the document
        value = self._value((), self._next())
        self._next()  # the end of the document
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._error(event, "not YAML: a second document: write one")
        return value

    def _next(self) -> Any:
        event = self.loader.get_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            what = "an alias" if isinstance(event, yaml.AliasEvent) else "a tag"
            raise self._error(event, f"{what} is not allowed here: write the value plainly")
        return event

    def _value(self, trail: Trail, event: Any) -> Any:
        self.lines.setdefault(trail, _line(event))
        self.count += 1
        if self.count > MOST_VALUES:
            what = f"more than {MOST_VALUES:,} keys and values"
            raise self._error(event, f"{what}: split the suite, or shorten the config")
        if len(trail) > MOST_LEVELS:
            raise self._error(event, "nested too deeply")
        if isinstance(event, yaml.ScalarEvent):
            tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
            return self.loader.construct_object(yaml.ScalarNode(tag, self._text(event)))
        return self._list(trail) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(trail)

    def _list(self, trail: Trail) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            values.append(self._value((*trail, len(values)), event))
        return values

    def _mapping(self, trail: Trail) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "a key must be a plain word")
            key = self._text(event)
            if key in values:
                raise self._error(event, f"{quoted(key)[1:-1]} is given twice: remove one")
            self.lines[(*trail, key)] = _line(event)
            self.count += 1
            values[key] = self._value((*trail, key), self._next())
        return values

    def _text(self, event: Any) -> str:
        """Return the text of a scalar. JSON's escapes write a character beyond 16 bits as two halves."""
        try:
            text: str = event.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self._error(event, "half of a character: write the whole one") from error
        return text

    def _error(self, event: Any, message: str) -> UserError:
        return UserError(f"{self.source} line {_line(event)}: {message}")


def _line(event: Any) -> int:
    line: int = event.start_mark.line
    return line + 1
