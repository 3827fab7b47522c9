"""The table of all runs, and their full records with the derivations of their estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from lorabench.bench.records.record import RunRecord
from lorabench.estimator.errors import UserError
from lorabench.estimator.explanation import Explanation, explain
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.recipe import SETTINGS
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.reports.packing import pack
from lorabench.reports.quantities import format_bytes, format_loss, format_number, format_seconds, format_share
from lorabench.reports.runs import Run, methods_of, varying_settings
from lorabench.reports.sections.failures import outcome_of

IN_A_BLOCK = 64
"""Records per compressed block. The page unpacks only the blocks that it needs."""
DERIVED = 200
"""Maximum number of runs with derivations on a page: each takes about 1/20 s and several kB."""

PLAIN = 50
"""Number of runs that browsers without scripts show."""

Kind = Literal["text", "bytes", "share", "fraction", "number", "seconds", "loss", "count"]
WRITE: dict[Kind, Callable[[Any], str]] = {
    "text": str,
    "bytes": format_bytes,
    "share": format_share,
    "fraction": lambda fraction: f"{format_number(100 * fraction)}%",
    "number": format_number,
    "seconds": format_seconds,
    "loss": format_loss,
    "count": "{:,}".format,
}


class Column(NamedTuple):
    """One column of the table."""

    key: str
    """Name in downloads; bytes end in ``_bytes``, seconds in ``_seconds``."""
    title: str
    kind: Kind
    value: Callable[[Run], Any]
    shown: bool = False
    """Whether the column is visible at first."""


def records(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the table's columns and values, and the records, compressed."""
    columns = [column for column in _columns(runs) if any(column.value(run) is not None for run in runs)]
    table = {
        "names": [run.name for run in runs],
        "models": [run.model for run in runs],
        "methods": [run.method for run in runs],
        "columns": [
            {"key": column.key, "title": column.title, "kind": column.kind, "shown": column.shown} for column in columns
        ],
        "values": [[column.value(run) for run in runs] for column in columns],
    }
    derive = _Derivations() if len(runs) <= DERIVED else None
    entries = [
        {
            "record": run.shown_record,
            "every": run.every,
            "traced": run.trace,
            "rehearsed": run.rehearsal,
            "derivation": derive(run.record) if derive else None,
        }
        for run in runs
    ]
    return {
        "table": pack(table),
        "blocks": [pack(entries[first : first + IN_A_BLOCK]) for first in range(0, len(entries), IN_A_BLOCK)],
        "plain": _plain([column for column in columns if column.shown], runs[:PLAIN]),
        "in_a_block": IN_A_BLOCK,
        "derived": derive is not None,
        "count": len(runs),
        "several_models": len({run.model for run in runs}) > 1,
        "methods": methods_of(runs),
        "models": list(dict.fromkeys(run.model for run in runs)),
        "outcomes": list(dict.fromkeys(map(outcome_of, runs))),
    }


def _plain(columns: Sequence[Column], runs: Sequence[Run]) -> dict[str, Any]:
    """Return the table as text, for browsers without scripts."""

    def write(column: Column, run: Run) -> str:
        value = column.value(run)
        return "–" if value is None else WRITE[column.kind](value)

    return {"columns": columns, "rows": [[write(column, run) for column in columns] for run in runs]}


class _Derivations:
    """Derivations of estimates, each computed once."""

    def __init__(self) -> None:
        self.done: dict[tuple[str, str], Explanation | str] = {}

    def __call__(self, record: RunRecord) -> Explanation | str:
        """Return the derivation, or the reason for its absence."""
        place = record.digest, record.device.backend
        if place not in self.done:
            try:
                spec = read_config(record.model_config, record.recipe.model)
                self.done[place] = explain(ResolvedRecipe(spec, record.recipe), record.device.backend)
            except UserError as error:
                self.done[place] = str(error)
        return self.done[place]


def _columns(runs: Sequence[Run]) -> list[Column]:
    varying = varying_settings(runs)

    def setting(field: str) -> Callable[[Run], Any]:
        return lambda run: run.settings.get(field)

    def measured(name: str) -> Callable[[Run], Any]:
        return lambda run: getattr(run.record.measurement, name, None)

    def memory(answer: str, name: str) -> Callable[[Run], Any]:
        return lambda run: getattr(run.breakdowns.get(answer), name, None)

    def fact(key: str, value: Callable[[Run], Any]) -> Column:
        return Column(key, key.replace("_", " "), "text", value, len({value(run) for run in runs}) > 1)

    settings = [
        Column(field, field, "text", setting(field), field in varying) for field in SETTINGS if field != "model"
    ]
    return [
        Column("recipe", "Recipe", "text", lambda run: run.name, True),
        Column("model", "Model", "text", lambda run: run.model, len({run.model for run in runs}) > 1),
        Column("outcome", "Outcome", "text", outcome_of, True),
        Column("estimated_peak_bytes", "Estimated peak", "bytes", lambda run: run.estimated_peak_bytes, True),
        Column("traced_peak_bytes", "Traced peak", "bytes", memory("traced", "peak_allocated_bytes"), True),
        Column("rehearsed_peak_bytes", "Rehearsed peak", "bytes", lambda run: run.rehearsed_peak_bytes, True),
        Column(
            "rehearsed_reserved_bytes", "Rehearsed reserved", "bytes", memory("rehearsed", "peak_reserved_bytes"), True
        ),
        Column("measured_peak_bytes", "Measured peak", "bytes", lambda run: run.measured_peak_bytes, True),
        Column("peak_error", "Error", "share", lambda run: run.peak_error, True),
        Column("peak_phase", "Peak in", "text", memory("measured", "phase")),
        Column("peak_reserved_bytes", "Reserved", "bytes", memory("measured", "peak_reserved_bytes")),
        Column("nvml_process_peak_bytes", "Process, nvidia-smi", "bytes", measured("nvml_process_peak_bytes")),
        Column("loading_peak_bytes", "Loading", "bytes", measured("loading_peak_bytes")),
        Column("rss_peak_bytes", "Host memory", "bytes", measured("rss_peak_bytes")),
        Column("tokens_per_second", "Tokens/s", "number", lambda run: run.tokens_per_second, True),
        Column("median_step_seconds", "Median step", "seconds", measured("median_step_seconds")),
        Column("mfu", "MFU", "fraction", measured("mfu"), True),
        Column("hfu", "HFU", "fraction", measured("hfu")),
        Column("joules_per_thousand_tokens", "J per 1,000 tokens", "number", measured("joules_per_thousand_tokens")),
        Column("final_loss", "Final loss", "loss", lambda run: run.final_loss, True),
        Column("held_out_loss_before", "Held-out loss before", "loss", measured("held_out_loss_before")),
        Column("held_out_loss_after", "Held-out loss after", "loss", measured("held_out_loss_after"), True),
        Column("parameters", "Parameters", "count", _counted("total")),
        Column("trainable_parameters", "Trainable", "count", _counted("trainable")),
        *settings,
        Column("unstable", "Unstable", "text", lambda run: "; ".join(run.unstable) or None),
        Column("message", "Message", "text", lambda run: run.record.message),
        fact("suite", lambda run: run.record.suite),
        fact("device", lambda run: run.record.device.name),
        fact("folder", lambda run: run.folder),
        fact("engine", lambda run: run.record.engine),
        fact("repeat", lambda run: run.record.repeat),
        Column("seed", "seed", "count", lambda run: run.record.seed),
        Column("started_at", "started", "text", lambda run: run.record.started_at),
        Column("digest", "digest", "text", lambda run: run.record.digest),
    ]


def _counted(field: str) -> Callable[[Run], Any]:
    def count(run: Run) -> Any:
        source = run.record.counted or run.record.prediction
        return getattr(source.parameters, field) if source else None

    return count
