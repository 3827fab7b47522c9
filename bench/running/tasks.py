"""The tasks of a suite, and the devices to run them on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lorabench.bench.machine.environment import Surroundings
from lorabench.bench.records.record import DeviceFacts, Key, RunRecord
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.sources import SourceDigests
from lorabench.bench.suites.suite import Suite
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class Task(Struct, frozen=True, kw_only=True):
    """One run of one recipe."""

    resolved: ResolvedRecipe
    label: str
    """Unique among the tasks."""
    settings: Settings
    repeat: int
    digests: SourceDigests

    @property
    def key(self) -> Key:
        """Key of its record."""
        return self.resolved.digest, self.settings.engine, self.repeat

    @property
    def facts(self) -> dict[str, Any]:
        """The requested settings in its record, besides recipe and device."""
        return {
            "engine": self.settings.engine,
            "repeat": self.repeat,
            "seed": self.settings.seed,
            "steps": self.settings.steps,
            "warmup_steps": self.settings.warmup_steps,
            "weights": "random" if self.settings.weights is None else "pretrained",
            "weights_digest": self.digests.weights,
            "dataset": None if self.settings.dataset is None else Path(self.settings.dataset).name,
            "dataset_digest": self.digests.dataset,
        }

    def differences(self, record: RunRecord) -> list[str]:
        """Return the names of the settings in which ``record``, of the same key, differs from this task."""
        measured = record.measurement
        lacks = self.settings.timeline and measured is not None and measured.timeline is None
        differing = [name for name, value in self.facts.items() if getattr(record, name) != value]
        return differing + ["timeline"] * lacks


class Lane(Struct, frozen=True):
    """A device; it runs one task at a time."""

    device: DeviceFacts
    environment: dict[str, str] = {}
    """Variables that make it the only visible GPU of a worker."""


def tasks_of(suite: Suite, settings: Settings, digests: SourceDigests) -> Iterator[Task]:
    """Yield every recipe of ``suite`` for each repeat. Each repeat has its own seed."""
    labels = suite.labels()
    for repeat in range(suite.repeats):
        for resolved in suite.recipes:
            yield Task(
                resolved=resolved,
                label=labels[resolved.digest] + (f" #{repeat + 1}" if suite.repeats > 1 else ""),
                settings=replace(settings, seed=settings.seed + repeat),
                repeat=repeat,
                digests=digests,
            )


def lanes_of(surroundings: Surroundings) -> list[Lane]:
    """Return a lane for each GPU equal to the first; one lane for a CPU, which two trainings cannot share."""
    if len(surroundings.equal_devices) == 1:
        return [Lane(surroundings.device)]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (
        [name.strip() for name in chosen.split(",")]
        if chosen
        else [str(i) for i in range(max(surroundings.equal_devices) + 1)]
    )
    return [Lane(surroundings.device, {"CUDA_VISIBLE_DEVICES": names[index]}) for index in surroundings.equal_devices]
