"""`lorabench rehearse SUITE|MODEL`: recipes on a null GPU, with lorabench's own training loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorabench.bench.records.record import RunRecord
from lorabench.bench.rehearsing.recipes import RecipesRehearsal, rehearse_suite
from lorabench.bench.running.tasks import Lane, Task
from lorabench.cli.listing import Column, as_json, as_table, folded
from lorabench.cli.output import show
from lorabench.cli.progress import Lines
from lorabench.cli.rehearsal_progress import StageLines
from lorabench.cli.rehearsal_text import kernels_launched, warnings
from lorabench.cli.rehearse import NOTHING_REHEARSED, OUT_OF_MEMORY
from lorabench.cli.run import suite_of
from lorabench.estimator.devices.device import Device
from lorabench.estimator.quantities import in_gib


class RecipeLines(Lines):
    """Prints a line for each finished recipe, and on a terminal the stage of the running recipe."""

    def __init__(self, verbosity: int, stage: StageLines) -> None:
        """See `Lines` and `StageLines`."""
        super().__init__(verbosity)
        self.waiting = stage  # type: ignore[method-assign]

    def prepared(self, tasks: Sequence[Task], lanes: Sequence[Lane], notices: Sequence[str]) -> None:
        """Print what `Lines` does, then the first stage: starting."""
        super().prepared(tasks, lanes, notices)
        self.waiting()


def rehearse_recipes(
    target: str | None,
    options: dict[str, Any],
    device: Device,
    output: Path | None,
    *,
    config: Path | None,
    format_: str,
    **settings: Any,
) -> int:
    """Rehearse each recipe of a suite, or one model, and print its memory; return the exit code.

    Args:
        config: a config of another tool.
        settings: arguments of `rehearse_suite`.
    """
    suite = suite_of(target, options, config)
    with tempfile.TemporaryDirectory(prefix="lorabench-") as folder:
        watcher = RecipeLines(0 if format_ == "table" else -1, StageLines(Path(folder)))
        rehearsal = rehearse_suite(suite, device, Path(folder), output, watcher=watcher, **settings)
    if format_ == "json":
        show(as_json(rehearsal))
    else:
        show("\n".join(["", *_lines(rehearsal, suite.labels(), output)]))
    outcomes = {record.outcome for record in rehearsal.records}
    return 0 if "ok" in outcomes else OUT_OF_MEMORY if outcomes == {"oom"} else NOTHING_REHEARSED


def _lines(rehearsal: RecipesRehearsal, labels: dict[str, str], output: Path | None) -> Iterator[str]:
    counted = [(record, record.rehearsal) for record in rehearsal.records if record.rehearsal is not None]
    if counted:
        yield as_table(
            [
                Column("recipe", [labels[record.digest] for record, _ in counted], right=False, folds=True),
                Column("allocated", [in_gib(one.memory.peak_allocated_bytes) for _, one in counted]),
                Column("reserved", [in_gib(one.memory.peak_reserved_bytes or 0) for _, one in counted]),
                Column("in", [one.memory.phase for _, one in counted], right=False),
                Column("estimate", [_error(record) for record, _ in counted]),
            ]
        )
    for record in rehearsal.records:
        if record.rehearsal is None:
            yield from folded(f"{labels[record.digest]}: {record.outcome} {record.message}", hanging="    ")
    for assumption in rehearsal.assumptions:
        yield from folded(f"assumed: {assumption}")
    usable = in_gib(rehearsal.gpu_usable_bytes)
    yield f"rehearsed on {rehearsal.gpu}, {usable} usable; the CUDA context is not counted"
    yield from warnings(rehearsal.noticed, rehearsal.refused)
    yield from kernels_launched(rehearsal.launches)
    if output is not None:
        yield f"Records are in {output}"


def _error(record: RunRecord) -> str:
    """Return how far the estimate is off from the allocated peak."""
    if record.prediction is None or record.rehearsal is None:
        return ""
    off = record.prediction.memory.peak_allocated_bytes / record.rehearsal.memory.peak_allocated_bytes - 1
    return f"{off:+.3%}"
