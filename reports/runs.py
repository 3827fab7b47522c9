"""The runs of a report: records in reading order, each with a unique name."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import RunRecord, read_records
from lorabench.bench.records.rehearsal import Rehearsal
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.recipes.recipe import CHOICES, SETTINGS

if TYPE_CHECKING:
    from lorabench.estimator.trace.trace import Trace

MOST_STEPS = 2000
"""Most steps of a run whose values the page has, one by one: about as many as a chart has pixels."""
_BY_STEP = ("step_seconds", "warmup_step_seconds", "losses", "gradient_norms")
"""Fields of a measurement with a value for each step."""


@dataclass(frozen=True)
class Run:
    """One record of the report."""

    index: int
    """Index among the runs of the report, used by the page's scripts."""
    folder: str
    """Results folder of the record, as the shortest name that is unique."""
    folder_number: int
    """Index of the folder on the command line, from 0."""
    name: str
    """Unique name among the runs of its model, such as ``lora r16 · 4×512``."""
    record: RunRecord
    trace: Trace | None = None
    """Trace of the recipe; None if not requested or not possible."""
    rehearsal: Rehearsal | None = None
    """The record's rehearsal, or that of another record of the same recipe, engine and GPU; None if there is none."""

    @cached_property
    def settings(self) -> dict[str, str]:
        """All settings that apply to the recipe, as text."""
        return self.record.recipe.describe()

    @cached_property
    def breakdowns(self) -> dict[str, Breakdown]:
        """``estimated``, ``traced``, ``rehearsed``, ``measured`` → memory, if it exists."""
        prediction, measurement = self.record.prediction, self.record.measurement
        answers = {
            "estimated": prediction.memory if prediction else None,
            "traced": self.trace.memory if self.trace else None,
            "rehearsed": self.rehearsal.memory if self.rehearsal else None,
            "measured": measurement.memory if measurement else None,
        }
        return {answer: memory for answer, memory in answers.items() if memory is not None}

    @property
    def every(self) -> int:
        """The page has the values of every so many steps of the run: of every step, unless these are too many."""
        measurement = self.record.measurement
        steps = max(len(getattr(measurement, name)) for name in _BY_STEP) if measurement else 0
        return max(1, -(-steps // MOST_STEPS))

    @property
    def shown_record(self) -> RunRecord:
        """The record with the steps that the page has."""
        measurement = self.record.measurement
        if measurement is None or self.every == 1:
            return self.record
        thinned = {name: getattr(measurement, name)[:: self.every] for name in _BY_STEP}
        return structs.replace(self.record, measurement=structs.replace(measurement, **thinned))

    @property
    def model(self) -> str:
        """The model's name."""
        return self.record.recipe.model

    @property
    def short_model(self) -> str:
        """The last part of the model's name or path."""
        return self.model.rstrip("/").rsplit("/", 1)[-1] or self.model

    @property
    def method(self) -> str:
        """The fine-tuning method."""
        return self.record.recipe.method

    @property
    def full_name(self) -> str:
        """Name with the model, for lists of several models."""
        return f"{self.short_model} {self.name}"

    @property
    def estimated_peak_bytes(self) -> int | None:
        """Estimated peak allocated memory; None if the record has no estimate."""
        prediction = self.record.prediction
        return prediction.memory.peak_allocated_bytes if prediction else None

    @property
    def measured_peak_bytes(self) -> int | None:
        """Measured peak allocated memory; None if nothing was measured."""
        measurement = self.record.measurement
        return measurement.memory.peak_allocated_bytes if measurement else None

    @property
    def peak_error(self) -> float | None:
        """(estimated − measured) / measured peak; None if one is missing."""
        estimated, measured = self.estimated_peak_bytes, self.measured_peak_bytes
        return (estimated - measured) / measured if estimated is not None and measured else None

    @property
    def rehearsed_peak_bytes(self) -> int | None:
        """Peak allocated memory in the rehearsal; None if there is none."""
        return self.rehearsal.memory.peak_allocated_bytes if self.rehearsal else None

    @property
    def timed(self) -> Measurement | None:
        """The measurement, if steps were timed."""
        measurement = self.record.measurement
        return measurement if measurement and measurement.step_seconds else None

    @cached_property
    def tokens_per_second(self) -> float | None:
        """Tokens per second at the median timed step; None if no step was timed."""
        return self.timed.tokens_per_second if self.timed else None

    @cached_property
    def tokens_per_second_interval(self) -> tuple[float, float] | None:
        """95 % interval of the tokens per second; None with fewer than two timed steps."""
        if self.timed is None or len(self.timed.step_seconds) < 2:
            return None
        least, most = self.timed.step_seconds_interval
        return self.timed.tokens_per_step / most, self.timed.tokens_per_step / least

    @property
    def unstable(self) -> tuple[str, ...]:
        """Why its step times are unreliable; empty if they are not."""
        return self.record.measurement.unstable if self.record.measurement else ()

    @property
    def final_loss(self) -> float | None:
        """Loss of the last step; None if it is missing or not finite."""
        measurement = self.record.measurement
        return measurement.losses[-1] if measurement and measurement.losses else None

    @property
    def learnt_loss(self) -> float | None:
        """The held-out loss after training if it was measured, else the loss of the last step."""
        measurement = self.record.measurement
        held_out = measurement.held_out_loss_after if measurement else None
        return self.final_loss if held_out is None else held_out


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of all records in ``folders``, in reading order. A folder that is named twice counts once.

    Raises:
        UserError: as in `read_records`.
    """
    distinct = {folder.resolve(): folder for folder in reversed(folders)}
    shared = os.path.commonpath([place.parent for place in distinct])
    return arrange(
        {str(place.relative_to(shared)): read_records(folder) for place, folder in reversed(distinct.items())}
    )


def arrange(folders: Mapping[str, Sequence[RunRecord]]) -> list[Run]:
    """Return the records of ``folders`` (name → records) as named runs, sorted by model and recipe."""
    runs = [
        Run(0, folder, number, "", record, rehearsal=record.rehearsal)
        for number, (folder, records) in enumerate(folders.items())
        for record in records
    ]
    runs = _with_rehearsals_beside_measurements(runs)
    runs.sort(key=_reading_order)
    named: list[Run] = []
    for runs_of_model in by_model(runs).values():
        names = _unique_names(runs_of_model)
        named += [replace(run, name=name) for run, name in zip(runs_of_model, names, strict=True)]
    return [replace(run, index=index) for index, run in enumerate(named)]


def _with_rehearsals_beside_measurements(runs: Sequence[Run]) -> list[Run]:
    """Return the runs. A successful rehearsal becomes part of the measurements of its recipe, engine and GPU."""

    if not any(run.record.rehearsed for run in runs):
        return list(runs)

    def work(run: Run) -> tuple[str, str, str]:
        device = run.record.device
        return run.record.digest, run.record.engine, device.catalogued.name if device.catalogued else device.name

    measured = {work(run) for run in runs if not run.record.rehearsed}
    found = {work(run): run.rehearsal for run in runs if run.rehearsal is not None}
    return [
        run if run.record.rehearsed else replace(run, rehearsal=found.get(work(run)))
        for run in runs
        if run.rehearsal is None or work(run) not in measured
    ]


def by_model(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the runs of each model, in order of first appearance."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.model].append(run)
    return groups


def methods_of(runs: Iterable[Run]) -> list[str]:
    """Return the methods of the runs, in their own order."""
    found = {run.method for run in runs}
    return [method for method in CHOICES["method"] if method in found]


def varying_settings(runs: Sequence[Run]) -> list[str]:
    """Return the names of the recipe settings that differ between ``runs``, in the order of the recipe's fields.

    A setting that does not apply to some runs, and is equal for all others, does not count as different.
    """
    return [field for field in SETTINGS if len({run.settings[field] for run in runs if field in run.settings}) > 1]


def _reading_order(run: Run) -> tuple[object, ...]:
    recipe = run.record.recipe
    return (
        recipe.model.casefold(),
        recipe.model,
        CHOICES["method"].index(recipe.method),
        recipe.rank or 0,
        recipe.batch_size,
        recipe.seq_len,
        *run.settings.values(),
        run.record.engine,
        run.record.device.name,
        run.folder_number,
        run.record.started_at,
    )


def _unique_names(runs: Sequence[Run]) -> list[str]:
    """Return a unique name for each run of one model: method, rank, and further settings only if needed.

    A value that more than half of the runs share is left out.
    """
    names = [f"{run.method} r{run.record.recipe.rank}" if run.record.recipe.rank else run.method for run in runs]
    for setting in _DISTINCTIONS:
        settings = [setting(run) for run in runs]
        values = defaultdict(set)
        for name, value in zip(names, settings, strict=True):
            values[name].add(value)
        if any(len(different) > 1 for different in values.values()):
            [(commonest, count)] = Counter(settings).most_common(1)
            left_out = commonest if count > len(runs) / 2 else None
            names = [
                f"{name} · {value}" if value not in (None, left_out) else name
                for name, value in zip(names, settings, strict=True)
            ]
    seen: dict[str, int] = defaultdict(int)
    for place, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[place] = f"{name} · no. {seen[name]}"
    return names


def _setting(field: str) -> Callable[[Run], str | None]:
    def setting(run: Run) -> str | None:
        value = run.settings.get(field)
        return f"{field} {value}" if value is not None else None

    return setting


_DISTINCTIONS: list[Callable[[Run], str | None]] = [
    lambda run: f"{run.record.recipe.batch_size}×{run.record.recipe.seq_len}",
    lambda run: "checkpointing" if run.record.recipe.gradient_checkpointing else "no checkpointing",
    *map(_setting, ["target_modules", "modules_to_save", "optim", "dtype", "adapter_dtype", "mixed_precision"]),
    *map(_setting, ["attn_implementation", "loss", "gradient_accumulation"]),
    *map(_setting, ["quant_type", "double_quant", "prepare_kbit", "recast", "bitsandbytes"]),
    *map(_setting, ["lora_alpha", "lora_dropout", "use_rslora", "use_reentrant", "keep_outputs"]),
    _setting("empty_cache_steps"),
    lambda run: run.record.engine,
    lambda run: "rehearsed" if run.record.rehearsed else "measured",
    lambda run: run.record.device.name,
    lambda run: run.record.suite,
    lambda run: run.folder,
    lambda run: f"repeat {run.record.repeat}",
    lambda run: run.record.digest,
    lambda run: run.record.started_at,
]
"""Settings that can distinguish two runs of a model, the most often varied first. Names use only those that do."""
