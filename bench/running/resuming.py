"""Which records of its folder a run takes as they are, which it replaces, and what to know of either before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lorabench.bench.records.record import SNAPSHOT_SUFFIX, Environment, file_stem
from lorabench.bench.records.results import Results
from lorabench.bench.running.tasks import Task

CONCLUSIVE = ("ok", "oom")
"""Outcomes that a resumed suite takes as they are; what was an error, a timeout or skipped is tried again."""


def differences(results: Results, task: Task) -> list[str] | None:
    """Return in what the record that is there is not as ``task`` asks; None where none is `CONCLUSIVE`."""
    record = results.records.get(task.key)
    if record is None or record.outcome not in CONCLUSIVE:
        return None
    wanted = task.settings.memory_snapshot and record.outcome == "ok"
    lacks = wanted and not snapshot_path(results.folder, task).exists()
    return task.differences(record) + ["memory_snapshot"] * lacks


def snapshot_path(folder: Path, task: Task) -> Path:
    """Return where the memory snapshot of ``task`` goes."""
    return folder.absolute() / (file_stem(task.key) + SNAPSHOT_SUFFIX)


def replaced(results: Results, tasks: Iterable[Task]) -> list[str]:
    """Return, a line each, which records ``tasks`` will replace, and how they are kept."""
    found = [one for task in tasks if (one := differences(results, task)) is not None]
    counts = {
        "--resume keeps them": found.count([]),
        f"they differ in {_listed(found)}; another folder with -o keeps them": len(found) - found.count([]),
    }
    return [
        f"{results.folder}: records replaced as their recipes run again: {count} ({how})"
        for how, count in counts.items()
        if count
    ]


def from_elsewhere(results: Results, tasks: Iterable[Task], here: Environment) -> list[str]:
    """Return, in one line, how the environments of the records that are kept for ``tasks`` differ from this one."""
    found = [one for task in tasks if (one := results.records[task.key].environment.differences(here))]
    where = f"{results.folder}: records kept that were measured in another environment"
    return [f"{where}: {len(found)} (they differ in {_listed(found)})"] if found else []


def _listed(differing: Iterable[list[str]]) -> str:
    return ", ".join(sorted({name.replace("_", " ") for names in differing for name in names}))
