"""The declarations of a tool's table: what becomes of each key of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from msgspec import Struct

from lorabench.estimator.errors import UserError
from lorabench.estimator.input_files import decode_json

if TYPE_CHECKING:
    from lorabench.estimator.imported.reading import Values

Change = Literal["less memory", "more memory", "other memory", "about the same memory"]
"""What the memory on one GPU would be if the key were taken into account."""
Options = Mapping[str, Any]
"""Recipe options by name."""
Rule = Callable[[Any, "Values"], "Options | Missing | list[Options | Missing]"]
"""From the value of a key, and the values of all keys, to recipe options or what they cannot say."""


class Missing(NamedTuple):
    """Something that a recipe cannot say."""

    why: str
    """What the key does, in a clause: ``ZeRO-3 shards weights over the GPUs``."""
    memory: Change


class NotTaken(Struct, frozen=True):
    """A key of a config that the answer does not take into account."""

    key: str
    value: str
    """As in the file, shortened."""
    why: str
    memory: Change | None
    """None if it is not known."""

    def __str__(self) -> str:
        """Return one line for people."""
        said = f"{self.key}: {self.value}" if self.value else self.key
        return f"{said} ({self.why}{f': {self.memory}' if self.memory else ''})"


class Key(NamedTuple):
    """One key of a tool's config."""

    read: Callable[[Any], Any]
    """Returns the value from YAML, JSON or the text of an argument.

    Raises:
        ValueError: it is another type. The message is what it should be.
    """
    rule: Rule | None = None
    """None: another key's rule uses the value, or it is without effect."""
    default: Any = None
    """The tool's own."""
    effect: bool = True
    """False: the key is without effect on memory and speed."""


Keys = dict[str, Key]


# Types of values


def text(value: Any) -> str:
    """Return a text or a number as text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("text")
    return str(value)


def whole(value: Any) -> int:
    """Return a whole number, also from text."""
    if isinstance(value, bool):
        raise ValueError("a whole number")
    try:
        number = float(value)
        if number != int(number):
            raise ValueError
        return int(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("a whole number") from error


def number(value: Any) -> float:
    """Return a number, also from text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError("a number") from error


FLAGS = dict.fromkeys(("true", "yes", "on", "1", ""), True) | dict.fromkeys(("false", "no", "off", "0"), False)
"""Spellings of a switch in YAML 1.1, JSON and arguments; an argument without a value is on."""


def flag(value: Any) -> bool:
    """Return whether a switch is on."""
    on = value if isinstance(value, bool) else FLAGS.get(str(value).lower())
    if on is None:
        raise ValueError("true or false")
    return on


def names(value: Any) -> str | list[str]:
    """Return a list of names, or the text that a tool reads itself: a pattern, or a word such as ``all``."""
    if isinstance(value, (list, tuple)):
        return [text(name) for name in value]
    return text(value)


def anything(value: Any) -> Any:
    """Return the value as it is."""
    return value


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping, also from the text of an argument, which is JSON."""
    if isinstance(value, str):
        value = decode_json(value.encode())
    if not isinstance(value, dict):
        raise ValueError("a mapping")
    return value


# What becomes of a key


def option(name: str, read: Callable[[Any], Any], default: Any = None) -> Key:
    """Return a key whose value is that of the recipe option ``name``."""
    return Key(read, lambda value, _: {} if value is None else {name: value}, default)


def used(read: Callable[[Any], Any], rule: Rule, default: Any = None) -> Key:
    """Return a key that ``rule`` turns into recipe options."""
    return Key(read, rule, default)


def part(read: Callable[[Any], Any], default: Any = None) -> Key:
    """Return a key whose value the rule of another key uses."""
    return Key(read, None, default)


def without_effect(keys: str) -> Keys:
    """Return keys, separated by blanks, that change neither memory nor speed of a step."""
    return {key: Key(anything, effect=False) for key in keys.split()}


OFF: tuple[Any, ...] = (None, False, "", "none", "null", "no", "false", "off", 0, 1, "0", "1", [], {})
"""Values that turn a feature off: counts of GPUs too."""


def missing(why: str, memory: Change, off: tuple[Any, ...] = OFF, default: Any = None) -> Key:
    """Return a key that the recipe cannot say, unless its value is one of ``off``."""

    def rule(value: Any, _: Values) -> Options | Missing:
        word = value.lower() if isinstance(value, str) else value
        on = word is True or not any(word == each and type(word) is type(each) for each in off)
        return Missing(why, memory) if on else {}

    return Key(anything, rule, default)


def refused(why: str, off: tuple[Any, ...] = OFF) -> Key:
    """Return a key with which no recipe stands for the training, unless its value is one of ``off``."""

    def rule(value: Any, values: Values) -> Options:
        if value is True or value not in off:
            raise UserError(why)
        return {}

    return Key(anything, rule)
