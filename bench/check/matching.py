"""Which records of the results stand beside which of the baseline: those of one recipe, engine and device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from lorabench.bench.check.printable import printable
from lorabench.bench.records.labels import distinct_labels
from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import DeviceFacts, Engine, Outcome, RunRecord
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.recipe import Recipe


class Work(NamedTuple):
    """What is done by every run of one recipe."""

    digest: str
    engine: Engine


class Runs(NamedTuple):
    """All runs of one recipe on one side, on one device."""

    records: tuple[RunRecord, ...]
    """By repeat."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of them all."""
        return self.records[0].recipe

    @property
    def device(self) -> DeviceFacts:
        """The device of them all."""
        return self.records[0].device

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of the runs that went well."""
        return tuple(record.measurement for record in self.records if record.measurement is not None)

    @property
    def outcomes(self) -> frozenset[Outcome]:
        """How they went."""
        return frozenset(record.outcome for record in self.records)


def runs_by_work(records: Iterable[RunRecord], side: str) -> dict[Work, Runs]:
    """Return the runs of each recipe.

    Raises:
        UserError: a recipe ran on several devices, or the same repeat of it is there twice.
    """
    found: dict[Work, list[RunRecord]] = {}
    for record in records:
        found.setdefault(Work(record.digest, record.engine), []).append(record)
    for work, runs in found.items():
        what = f"{side}: recipe {work.digest} ({printable(runs[0].recipe.label())})"
        devices = {_names(record.device) for record in runs}
        if len(devices) > 1:
            raise UserError(f"{what} ran on {' and on '.join(sorted(devices))}: keep one folder a device")
        repeats = Counter(record.repeat for record in runs)
        if max(repeats.values()) > 1:
            raise UserError(f"{what} has two records of the same repeat: remove one")
        runs.sort(key=lambda record: record.repeat)
    return {work: Runs(tuple(runs)) for work, runs in found.items()}


def device_of(label: str, before: Runs, after: Runs, *, across_devices: bool) -> str:
    """Return the name of the device that both ran on, or both names where they may differ.

    Raises:
        UserError: they ran on different devices, and ``across_devices`` is not given.
    """
    old, new = _names(before.device), _names(after.device)
    if old == new:
        return printable(after.device.name)
    if across_devices:
        return f"{old} → {new}"
    raise UserError(
        f"{label}: the baseline ran on {old}, the results on {new}: compare with a baseline of the same device, or "
        "give --across-devices"
    )


def environment_changes(before: Iterable[RunRecord], after: Iterable[RunRecord]) -> tuple[str, ...]:
    """Return what differs between the environments of the two sides, each as one line."""
    old, new = _facts(before), _facts(after)
    return tuple(
        printable(f"{name} {_either(old.get(name))} → {_either(new.get(name))}")
        for name in dict.fromkeys([*old, *new])
        if old.get(name, set()) != new.get(name, set())
    )


def labels_of(sides: Iterable[dict[Work, Runs]]) -> dict[Work, str]:
    """Return a name for each recipe and engine, in one printable line, unlike every other name."""
    works = {work: runs.recipe for side in sides for work, runs in side.items()}
    plain = distinct_labels({work.digest: recipe for work, recipe in works.items()})
    names = {
        work: printable(" ".join([plain[work.digest], *([] if work.engine == "lorabench" else [work.engine])]))
        for work in works
    }
    # Names that differ only in what cannot be printed.
    taken = Counter(names.values())
    return {work: name if taken[name] == 1 else f"{name} {work.digest}" for work, name in names.items()}


def _names(device: DeviceFacts) -> str:
    return f"{printable(device.name)} ({device.kind})"


def _either(values: set[str] | None) -> str:
    return " or ".join(sorted(values)) if values else "none"


def _facts(records: Iterable[RunRecord]) -> dict[str, set[str]]:
    """Return what the records' environments say: the name of a fact → its values."""
    facts: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.environment.facts().items():
            facts.setdefault(name, set()).update([value] if value else [])
    return facts
