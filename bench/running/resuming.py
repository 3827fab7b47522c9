"""Decide which existing records a run keeps and which it replaces, with notices about both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lorabench.bench.records.record import SNAPSHOT_SUFFIX, Environment, file_stem
from lorabench.bench.records.results import Results
from lorabench.bench.running.tasks import Task

CONCLUSIVE = ("ok", "oom")
"""Outcomes that a resumed suite keeps; error, timeout and skipped are run again."""


def differences(results: Results, task: Task) -> list[str] | None:
    """Return how the existing record differs from ``task``; None if there is no `CONCLUSIVE` one."""
    record = results.records.get(task.key)
    if record is None or record.outcome not in CONCLUSIVE:
        return None
    wanted = task.settings.memory_snapshot and record.outcome == "ok"
    lacks = wanted and not snapshot_path(results.folder, task).exists()
    return task.differences(record) + ["memory_snapshot"] * lacks


def snapshot_path(folder: Path, task: Task) -> Path:
    """Return the file for the memory snapshot of ``task``."""
    return folder.absolute() / (file_stem(task.key) + SNAPSHOT_SUFFIX)


def replaced(results: Results, tasks: Iterable[Task]) -> list[str]:
    """Return lines on the records that ``tasks`` will replace, and how to keep them."""
    found = [one for task in tasks if (one := differences(results, task)) is not None]
    counts = {
        "--resume keeps them": found.count([]),
        f"they differ in {_listed(found)}; another folder with -o keeps them": len(found) - found.count([]),
    }
    return [
        f"{results.folder}: {count} record{'s' if count > 1 else ''} will be replaced ({how})"
        for how, count in counts.items()
        if count
    ]


def from_elsewhere(results: Results, tasks: Iterable[Task], here: Environment) -> list[str]:
    """Return one line if kept records of ``tasks`` are from another environment, else nothing."""
    found = [one for task in tasks if (one := results.records[task.key].environment.differences(here))]
    count = f"{len(found)} kept record{'s are' if len(found) > 1 else ' is'}"
    return [f"{results.folder}: {count} from another environment ({_listed(found)})"] if found else []


def _listed(differing: Iterable[list[str]]) -> str:
    return ", ".join(sorted({name.replace("_", " ") for names in differing for name in names}))
