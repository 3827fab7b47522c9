"""Pair the records of results and baseline by recipe, engine and device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lorabench.bench.records.labels import distinct_labels
from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import DeviceFacts, Engine, Outcome, RunRecord
from lorabench.bench.records.rehearsal import Counted
from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import printable
from lorabench.estimator.recipes.recipe import Recipe


class Work(NamedTuple):
    """Identifies a recipe and the engine that ran it."""

    digest: str
    engine: Engine


class Runs(NamedTuple):
    """All runs of one recipe on one side, on one device."""

    records: tuple[RunRecord, ...]
    """Sorted by repeat."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of all records."""
        return self.records[0].recipe

    @property
    def device(self) -> DeviceFacts:
        """The device of all records."""
        return self.records[0].device

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """The measurements of the runs that succeeded."""
        return tuple(record.measurement for record in self.records if record.measurement is not None)

    @property
    def counted(self) -> tuple[Counted, ...]:
        """Peaks of the successful runs, measured or rehearsed."""
        return tuple(record.counted for record in self.records if record.counted is not None)

    @property
    def rehearsed(self) -> bool:
        """Whether they ran on a null GPU."""
        return self.records[0].rehearsed

    @property
    def outcomes(self) -> frozenset[Outcome]:
        """All outcomes of the runs."""
        return frozenset(record.outcome for record in self.records)


def runs_by_work(records: Sequence[RunRecord], side: str) -> dict[Work, Runs]:
    """Return the runs of each recipe.

    Raises:
        UserError: a recipe ran on several devices, or has two records of the same repeat; or there are rehearsals
            besides measurements.
    """
    if len({record.rehearsed for record in records}) > 1:
        raise UserError(f"{side}: both rehearsals and measurements: keep rehearsals in a folder of their own")
    found: dict[Work, list[RunRecord]] = {}
    for record in records:
        found.setdefault(Work(record.digest, record.engine), []).append(record)
    for work, runs in found.items():
        what = f"{side}: recipe {work.digest} ({printable(runs[0].recipe.label())})"
        devices = {_names(record.device) for record in runs}
        if len(devices) > 1:
            raise UserError(f"{what} ran on {' and on '.join(sorted(devices))}: keep one folder per device")
        repeats = Counter(record.repeat for record in runs)
        if max(repeats.values()) > 1:
            raise UserError(f"{what} has two records of the same repeat: remove one")
        runs.sort(key=lambda record: record.repeat)
    return {work: Runs(tuple(runs)) for work, runs in found.items()}


def refuse_unlike(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> None:
    """Refuse to compare rehearsals with measurements; each side holds only one of them.

    Raises:
        UserError: one side was rehearsed, the other measured.
    """
    if before and after and before[0].rehearsed != after[0].rehearsed:
        was, were = ("rehearsed", "measured") if before[0].rehearsed else ("measured", "rehearsed")
        raise UserError(f"the baseline was {was}, the results were {were}: compare like with like")


def device_of(label: str, before: Runs, after: Runs, *, across_devices: bool) -> str:
    """Return the device's name, or both names if ``across_devices`` permits different devices.

    Raises:
        UserError: the two sides ran on different devices, and ``across_devices`` is false.
    """
    old, new = _names(before.device), _names(after.device)
    if old == new:
        return printable(after.device.name)
    if across_devices:
        return f"{old} → {new}"
    raise UserError(
        f"{label}: the baseline ran on {old}, the results on {new}: use a baseline from the same device, or pass "
        "--across-devices"
    )


def environment_changes(before: Iterable[RunRecord], after: Iterable[RunRecord]) -> tuple[str, ...]:
    """Return the differences between the environments of the two sides, one line each."""
    old, new = _facts(before), _facts(after)
    return tuple(
        printable(f"{name} {_either(old.get(name))} → {_either(new.get(name))}")
        for name in dict.fromkeys([*old, *new])
        if old.get(name, set()) != new.get(name, set())
    )


def labels_of(sides: Iterable[dict[Work, Runs]]) -> dict[Work, str]:
    """Return a unique name for each recipe and engine, as one printable line."""
    works = {work: runs.recipe for side in sides for work, runs in side.items()}
    plain = distinct_labels({work.digest: recipe for work, recipe in works.items()})
    names = {
        work: printable(" ".join([plain[work.digest], *([] if work.engine == "lorabench" else [work.engine])]))
        for work in works
    }
    # Names that differ only in characters that cannot be printed get the digest.
    taken = Counter(names.values())
    return {work: name if taken[name] == 1 else f"{name} {work.digest}" for work, name in names.items()}


def _names(device: DeviceFacts) -> str:
    return f"{printable(device.name)} ({device.backend})"


def _either(values: set[str] | None) -> str:
    return " or ".join(sorted(values)) if values else "none"


def _facts(records: Iterable[RunRecord]) -> dict[str, set[str]]:
    """Return the facts of the records' environments: name → values."""
    facts: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.environment.facts().items():
            facts.setdefault(name, set()).update([value] if value else [])
    return facts
