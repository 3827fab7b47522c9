"""The environments of the runs: devices, versions, driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabench.bench.records.record import RunRecord
from lorabench.reports.quantities import format_bytes
from lorabench.reports.runs import Run


def environments(runs: Sequence[Run]) -> dict[str, Any]:
    """Return each distinct environment with its number of runs, and the facts that differ."""
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for run in runs:
        facts = tuple(_facts(run.record).items())
        counts[facts] = counts.get(facts, 0) + 1
    return {
        "environments": [{"facts": dict(facts), "count": count} for facts, count in counts.items()],
        "differing": differing_facts(runs),
    }


def differing_facts(runs: Sequence[Run]) -> list[str]:
    """Return the names of the facts about device and environment that differ between ``runs``."""
    every = [_facts(run.record) for run in runs]
    names = dict.fromkeys(name for facts in every for name in facts)
    return [name for name in names if len({facts.get(name) for facts in every}) > 1]


def _facts(record: RunRecord) -> dict[str, str]:
    device = record.device
    facts = {"device": device.name, "memory": format_bytes(device.memory_bytes), **record.environment.facts()}
    return {name: fact for name, fact in facts.items() if fact is not None}
