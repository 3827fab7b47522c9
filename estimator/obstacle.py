"""Why a recipe cannot run on a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Obstacle(NamedTuple):
    """A reason why transformers and peft cannot run a recipe on a model."""

    setting: str
    why: str
    mend: str
    """What to ask for instead, as people write it."""
    instead: Mapping[str, Any] = {}
    """Setting → what people run who do not ask for it; of several, the first that was not asked for is enough."""
