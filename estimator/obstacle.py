"""The reason why a recipe cannot run on a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Obstacle(NamedTuple):
    """A reason why transformers and peft cannot run a recipe on a model."""

    setting: str
    why: str
    remedy: str
    """The options to use instead, as people write them."""
    instead: Mapping[str, Any] = {}
    """Setting → the usual alternative. If there are several, the first one that the user did not set is enough."""
