"""Validation of values from outside against types, with error messages for people."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct, inspect
from msgspec.structs import FieldInfo

from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted

T = TypeVar("T")


def convert(value: Any, kind: type[T], name: str = "") -> T:
    """Return ``value`` converted to type ``kind``. ``name``: its name in error messages.

    Raises:
        UserError: the expected and the actual value, as in ``rank must be a whole number of at least 1, got -1``; or
            the message of the type's own check.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(_complaint(value, kind, name) or str(error)) from error


def _complaint(value: Any, kind: Any, name: str) -> str | None:
    """Return the error message for ``value``, or for its first wrong part; None if it is valid."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        own_words = error.__cause__
    else:
        return None
    for part, item, item_kind in _parts(value, kind):
        complaint = _complaint(item, item_kind, f"{name}{part}" if name else part.removeprefix("."))
        if complaint is not None:
            return complaint
    if own_words is not None:
        return f"{name}: {own_words}" if name else str(own_words)
    fields = _fields(_bare(kind)) if isinstance(value, dict) else {}
    where = f" in {name}" if name else ""
    for key, field in fields.items():
        if field.required and key not in value:
            return f"{key} is missing{where}"
    for key in value if fields else ():
        if key not in fields:
            return f"unknown key {quoted(key)}{where}: {did_you_mean(str(key), fields)}"
    return f"{name or 'it'} must be {_expected(inspect.type_info(kind))}, got {quoted(value)}"


def _parts(value: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each part inside ``value``, the part, and its required type."""
    kind = _bare(kind)
    origin, arguments, fields = get_origin(kind), get_args(kind), _fields(kind)
    if isinstance(value, dict) and fields:
        yield from ((f".{key}", item, fields[key].type) for key, item in value.items() if key in fields)
    elif isinstance(value, dict) and origin is dict:
        yield from ((f".{key}", item, arguments[1]) for key, item in value.items())
    elif isinstance(value, list) and origin in (list, tuple):
        kinds = repeat(arguments[0]) if origin is list or arguments[-1] is ... else arguments
        yield from ((f"[{index}]", item, each) for index, (item, each) in enumerate(zip(value, kinds, strict=False)))


def _bare(kind: Any) -> Any:
    """Return type ``kind`` without its limits, and without None if it is optional."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    others = [each for each in get_args(kind) if each is not NoneType]
    return _bare(others[0]) if NoneType in get_args(kind) and len(others) == 1 else kind


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """Return the fields of a struct type by their keys in files; no fields for any other type."""
    if not (isinstance(kind, type) and issubclass(kind, Struct)):
        return {}
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def _expected(kind: inspect.Type) -> str:
    """Return a description of the values of ``kind``, in words."""
    match kind:
        case inspect.UnionType(types=types):
            return " or ".join(_expected(each) for each in types if not isinstance(each, inspect.NoneType))
        case inspect.IntType():
            return "a whole number" + _range(kind)
        case inspect.FloatType():
            return "a number" + _range(kind)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType(pattern=pattern) if pattern:
            return f"text of the form {pattern}"
        case inspect.StrType(min_length=length):
            return "text that is not empty" if length else "text"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.ListType() | inspect.VarTupleType() | inspect.TupleType():
            return "a list"
    return "a mapping"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {_plain(kind.ge)} to {_plain(kind.le)}"
    ends = {"of at least": kind.ge, "above": kind.gt, "at most": kind.le, "below": kind.lt}
    said = " and ".join(f"{word} {_plain(end)}" for word, end in ends.items() if end is not None)
    return f" {said}" if said else ""


def _plain(number: float) -> str:
    whole = isinstance(number, int) or (number == int(number) and abs(number) < 1e15)
    return str(int(number)) if whole else f"{number:g}"
