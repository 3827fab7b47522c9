"""Read YAML with plain values only, and the line of each value for error messages."""

from __future__ import annotations

import re
from typing import Any

import yaml

from lorabench.estimator.errors import UserError

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


def read_plain_yaml(text: str, source: str) -> tuple[Any, dict[Trail, int]]:
    """Return the value of ``text``, and the line of every value in it, from 1.

    Raises:
        UserError: not YAML; a tag or an alias; a key that is not a plain word, or repeated. The message has ``source``
            and line.
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
        problem = error.problem or error.context or ""
        how = ": indent with spaces, not tabs" if "'\\t'" in problem else ""
        raise UserError(f"{source}{where}: not YAML: {problem}{how}") from error
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
            return self.scalars.construct_object(node)
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


def _error(source: str, node: Any, message: str) -> UserError:
    return UserError(f"{source} line {node.start_mark.line + 1}: {message}")
