"""What `make` installs is what pyproject.toml admits, from its oldest to the newest."""

from __future__ import annotations

import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from lorabench.bench.machine.tested_versions import version_sets

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(line) for line in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())]
LINTERS = {"mypy", "ruff", "types-pyyaml"}
"""Run with the pinned set alone."""


def named(requirements: list[Requirement]) -> set[str]:
    return {requirement.name.lower() for requirement in requirements} - {"lorabench"}


def test_the_lowest_set_is_the_oldest_that_the_project_admits() -> None:
    oldest = {
        requirement.name.lower(): Version(specifier.version)
        for requirement in REQUIRED
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    assert version_sets()["lowest"] == oldest
    assert oldest.keys() == named(REQUIRED) - LINTERS


@pytest.mark.parametrize("name", ["pinned", "newest"])
def test_every_other_set_pins_all_that_is_required_to_what_is_admitted(name: str) -> None:
    pinned = version_sets()[name]
    assert pinned.keys() >= named(REQUIRED) - (LINTERS if name == "newest" else set())
    for requirement in REQUIRED:
        version = pinned.get(requirement.name.lower())
        assert version is None or requirement.specifier.contains(version), requirement


def test_the_newest_set_is_nowhere_older_than_the_pinned_one() -> None:
    pinned, newest = version_sets()["pinned"], version_sets()["newest"]
    assert newest.keys() == pinned.keys() - LINTERS
    assert {name for name in newest if newest[name] < pinned[name]} == set()


def test_the_versions_that_the_makefile_takes_are_the_sets() -> None:
    folder = ROOT / "bench/machine/versions"
    assert {path.stem for path in folder.iterdir()} == version_sets().keys()
    assert f"CONSTRAINTS := {folder.relative_to(ROOT)}/$(VERSIONS).txt" in (ROOT / "Makefile").read_text()
