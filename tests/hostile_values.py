"""Values that nobody writes by intent, and files in which one value is replaced by such a one."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


EXTREMES: list[Any] = [
    *(
        None,
        True,
        False,
        "",
        " ",
        "0",
        "nan",
        "off",
        "\x1b]0;pwn\x07",
        "\x9b2J\u202e",
        "\udcff",
        "\U00010000",
        "a\nb",
        "x" * 10_000,
        "../..",
    ),
    *(0, -1, 1, 7, 2**31, 2**53 + 1, 2**63, 10**400, -(10**400), 0.0, 0.5, -1.5, 1e15, 1e308, -1e308, 5e-324),
    *([], {}, [[]], [{}], {"": None}, [None], nested(60), list(range(1000)), {str(key): key for key in range(1000)}),
]
VALUES = st.sampled_from(EXTREMES) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@st.composite
def spoilt(draw: st.DrawFn, valid: Any) -> Any:
    """Return the JSON value ``valid`` with one to three changes: parts replaced, removed, added or doubled."""
    whole = {"": copy.deepcopy(valid)}
    for _ in range(draw(st.integers(1, 3))):
        parent: Any = whole
        key: Any = ""
        while isinstance(parent[key], dict | list) and parent[key] and draw(st.integers(0, 4)):
            parent = parent[key]
            key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(min(len(parent), 20))))
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "double"]))
        if change == "remove" and parent is not whole:
            del parent[key]
        elif change == "add" and isinstance(parent[key], dict):
            parent[key][draw(st.text(max_size=10))] = copy.deepcopy(draw(VALUES))
        elif change == "double" and isinstance(parent[key], list):
            parent[key] = parent[key] + parent[key]
        else:
            parent[key] = copy.deepcopy(draw(VALUES))
    return whole[""]
