"""What the runner asks of a worker process, and what the worker answers."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from lorabench.bench.measurements import Measurement
from lorabench.bench.records import Outcome
from lorabench.estimator.models import ModelSpec
from lorabench.estimator.recipes import Recipe


class Settings(Struct, frozen=True, kw_only=True):
    """How a suite is run: what is the same for all of its recipes."""

    device: Literal["cuda", "cpu"]
    steps: int
    """Timed steps."""
    warmup_steps: int
    seed: int = 0
    """Of the weights and of dropout."""
    weights: str | None = None
    """``hub`` for those of the model's name on the hub, or a folder with safetensors; None for random weights."""
    dataset: str | None = None
    """A text or .jsonl file; None for the text that Python ships."""


class Job(Struct, frozen=True, kw_only=True):
    """One recipe to measure."""

    recipe: Recipe
    spec: ModelSpec
    settings: Settings
    answer_path: str
    """Where the worker writes its `Answer`, as JSON."""


class Answer(Struct, frozen=True, kw_only=True):
    """How it went."""

    outcome: Outcome
    message: str | None = None
    """What went wrong, or is worth knowing, in one line."""
    traceback: str | None = None
    measurement: Measurement | None = None
