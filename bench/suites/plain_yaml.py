"""YAML of plain values only, with the line of each, so that a complaint can say where."""

from __future__ import annotations

import re
from typing import Any

import yaml

from lorabench.estimator.errors import UserError

Trail = tuple[str | int, ...]
"""Keys and list indices that lead to a value."""


class _PlainLoader(yaml.SafeLoader):
    """As in YAML 1.2, true and false are the only booleans (``mixed_precision: no`` is a word), and dates are words."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("int", "float", "null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false"), list("tf"))


def read_plain_yaml(text: str, source: str) -> tuple[Any, dict[Trail, int]]:
    """Return the value that ``text`` holds, and the line, from 1, of every value in it.

    Raises:
        UserError: not YAML, a tag or an alias, a key that is no word or is given twice; with ``source`` and line.
    """
    try:
        for token in yaml.scan(text, _PlainLoader):
            if isinstance(token, yaml.TagToken | yaml.AliasToken):
                what = "a tag" if isinstance(token, yaml.TagToken) else "an alias"
                raise _error(source, token, f"{what} is not allowed here: write the value plainly")
        reader = _Reader(source)
        return reader.build(yaml.compose(text, _PlainLoader), ()), reader.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{where}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply") from error


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[Trail, int] = {}
        self.scalars = _PlainLoader("")

    def build(self, node: Any, trail: Trail) -> Any:
        if node is None:
            return None
        self.lines.setdefault(trail, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*trail, index)) for index, item in enumerate(node.value)]
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error(self.source, key_node, "a key must be a plain word")
            key = key_node.value
            if key in values:
                raise _error(self.source, key_node, f"{key} is given twice: remove one")
            self.lines[(*trail, key)] = key_node.start_mark.line + 1
            values[key] = self.build(value_node, (*trail, key))
        return values

    def _scalar(self, node: Any) -> Any:
        try:
            return self.scalars.construct_object(node)
        except ValueError as error:
            # Such as 0x without digits, which YAML 1.1 takes for a number.
            raise _error(self.source, node, f"{node.value!r} is no number: quote it") from error


def _error(source: str, node: Any, message: str) -> UserError:
    return UserError(f"{source} line {node.start_mark.line + 1}: {message}")
