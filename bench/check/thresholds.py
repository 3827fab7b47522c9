"""How much worse each metric may get before the check calls it a regression."""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct

from lorabench.estimator.errors import UserError

_SHARE = re.compile(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*")


class Thresholds(Struct, frozen=True, kw_only=True):
    """Changes for the worse up to these shares of the baseline are no regression; None: the metric is not judged.

    They are policy, not measurements: how large a change somebody wants to hear of.
    """

    memory: float | None = 0.005
    """Of ``peak_allocated_bytes``, which repeats nearly to the byte."""
    reserved: float | None = 0.1
    """Of ``peak_reserved_bytes``, which depends on how the allocator's segments fragment."""
    nvml: float | None = 0.1
    """Of ``nvml_process_peak_bytes``, which has the driver's context and the libraries' workspaces besides."""
    speed: float | None = 0.03
    """Of ``step_seconds``: the minimum effect, beyond which a change must be significant too."""
    loss: float | None = 0.05
    """Of ``final_loss`` where each side trained with one seed, so that the spread of seeds is not known."""
    loss_over_seeds: float | None = 0.01
    """Of ``final_loss`` where repeated runs tell that spread, beyond which a change must be significant too."""
    estimate: float | None = 0.03
    """Of the estimate, in either direction, where measurements are held against it."""


def read_share(value: object) -> float | None:
    """Return the share that ``3%`` or ``0.03`` stands for; None for ``off``.

    Raises:
        UserError: it is neither, or not from 0 to under 1.
    """
    if value == "off":
        return None
    match = _SHARE.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    if match is None or isinstance(value, bool):
        raise UserError(f"{value!r} is no share: write one such as 3% or 0.03, or off")
    share = float(match[1]) / (100 if match[2] else 1)
    if share >= 1:
        raise UserError(f"{value!r} is 100% or more: write a share such as 3% or 0.03, or off")
    return share


def with_shares(thresholds: Thresholds, given: dict[str, Any]) -> Thresholds:
    """Return ``thresholds`` with those ``given`` (name → share, or None for off) in their place."""
    values = {name: getattr(thresholds, name) for name in Thresholds.__struct_fields__}
    return Thresholds(**(values | given))
