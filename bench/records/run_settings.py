"""The run settings that all recipes of a suite share."""

from __future__ import annotations

from msgspec import Struct

from lorabench.bench.records.record import Engine
from lorabench.estimator.devices.backend import Backend


class Settings(Struct, frozen=True, kw_only=True):
    """The run settings of a suite."""

    backend: Backend
    steps: int
    """Minimum number of timed steps."""
    warmup_steps: int
    """Minimum number of warm-up steps."""
    least_seconds: float = 1.0
    """Minimum total time of the timed steps."""
    timed: bool = True
    """Whether the times of steps and phases are used. They are not on a null GPU, which does no work."""
    seed: int = 0
    """Seed of random weights and dropout."""
    weights: str | None = None
    """``hub`` for the model's weights on the hub, or a folder with safetensors; None for random weights."""
    dataset: str | None = None
    """A text or .jsonl file; None for Python's own text."""
    engine: Engine = "lorabench"
    """The training loop."""
    timeline: bool = False
    """Whether to record the live bytes over one step."""
    memory_snapshot: bool = False
    """Whether to write a snapshot of CUDA's allocator over one step beside the record (cuda)."""
