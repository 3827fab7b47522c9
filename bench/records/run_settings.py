"""How a suite is run: the settings that all of its recipes share."""

from __future__ import annotations

from msgspec import Struct

from lorabench.bench.records.record import Engine
from lorabench.estimator.devices.backend import Backend


class Settings(Struct, frozen=True, kw_only=True):
    """How a suite is run: what is the same for all of its recipes."""

    device: Backend
    steps: int
    """Timed steps, at least."""
    warmup_steps: int
    """Steps before them, at least."""
    least_seconds: float = 1.0
    """Timed steps take at least so long, together."""
    seed: int = 0
    """Of the weights and of dropout."""
    weights: str | None = None
    """``hub`` for those of the model's name on the hub, or a folder with safetensors; None for random weights."""
    dataset: str | None = None
    """A text or .jsonl file; None for the text that Python ships."""
    engine: Engine = "lorabench"
    """Whose loop trains."""
    timeline: bool = False
    """Whether the live bytes of one step are part of the measurement, moment by moment."""
    memory_snapshot: bool = False
    """Whether a snapshot of CUDA's allocator over one step is written beside the record (cuda)."""
