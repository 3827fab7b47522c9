"""The version sets that lorabench is tested with. `make` installs them, and the doctor compares with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from packaging.version import Version

FOLDER = Path(__file__).parent / "versions"
TESTED_BY = {
    "pinned": "all of lorabench's tests",
    "newest": "lorabench's tests of the libraries",
    "lowest": "lorabench's tests of the libraries",
}
"""Set (a pip constraints file) → the tests that run with it in CI."""


class Departure(Struct, frozen=True):
    """A package outside the tested versions."""

    package: str
    version: str
    nearest: str
    """The newest tested version if ``version`` is newer, else the oldest."""
    newer: bool


@cache
def version_sets() -> dict[str, dict[str, Version]]:
    """Return each set of `TESTED_BY` as package (lower case) → version."""
    return {name: _read(FOLDER / f"{name}.txt") for name in TESTED_BY}


def _read(path: Path) -> dict[str, Version]:
    """Return the pins of a pip constraints file. Each line is empty, a comment, or NAME==VERSION."""
    from packaging.version import Version

    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower(): Version(version) for name, version in pins}


def matching_set(installed: Mapping[str, str]) -> str | None:
    """Return the set that contains all ``installed`` versions (package → version); None if none does.

    Local versions, such as in 2.13.0+cpu, are ignored.
    """
    from packaging.version import Version

    public = {name: Version(Version(version).public) for name, version in installed.items()}
    return next((name for name, pinned in version_sets().items() if public.items() <= pinned.items()), None)


def departures(installed: Mapping[str, str]) -> list[Departure]:
    """Return the packages of ``installed`` (package → version) that are older or newer than in all sets."""
    from packaging.version import Version

    found = []
    for name, version in installed.items():
        tested = [pinned[name] for pinned in version_sets().values() if name in pinned]
        here = Version(Version(version).public)
        if tested and not min(tested) <= here <= max(tested):
            newer = here > max(tested)
            found.append(Departure(name, version, str(max(tested) if newer else min(tested)), newer))
    return found
