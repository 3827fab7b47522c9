"""The table of all runs, and the records themselves, each fact embedded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lorabench.reports.runs import Run, varying_settings

SHARED = ("model_config", "device", "environment", "traceback", "parameters")
"""Fields, of a record or of its prediction and measurement, that have the same value in many records."""


def records(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the columns and rows of the table, and the records for the page's scripts."""
    varying = [field for field in varying_settings(runs) if field != "model"]
    described = [run.record.recipe.describe() for run in runs]
    facts = {
        "suite": [run.record.suite for run in runs],
        "device": [run.record.device.name for run in runs],
        "folder": [run.folder for run in runs],
    }
    distinguishing = {name: values for name, values in facts.items() if len(set(values)) > 1}
    return {
        "runs": runs,
        "several_models": len({run.model for run in runs}) > 1,
        "settings": varying,
        "rows": [
            {
                "run": run,
                "settings": [settings.get(field) for field in varying],
                "facts": [values[run.index] for values in distinguishing.values()],
            }
            for run, settings in zip(runs, described, strict=True)
        ],
        "facts": list(distinguishing),
        "constant": {
            field: value
            for settings in described
            for field, value in settings.items()
            if field not in varying and field != "model"
        },
        "store": _store(runs),
    }


def _store(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the records in order, with the values of `SHARED` replaced by their places in lists beside them."""
    shared: dict[str, dict[bytes, int]] = {field: {} for field in SHARED}
    stored = []
    for run in runs:
        record = msgspec.to_builtins(run.record)
        for holder in filter(None, (record, record["prediction"], record["measurement"])):
            for field in holder.keys() & SHARED:
                places = shared[field]
                holder[field] = places.setdefault(msgspec.json.encode(holder[field]), len(places))
        stored.append(record)
    values = {field: [msgspec.Raw(value) for value in places] for field, places in shared.items()}
    return {"shared": values, "records": stored}
