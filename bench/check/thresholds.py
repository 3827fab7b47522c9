"""How much worse each metric may get before the check calls it a regression."""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct

from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import quoted

_SHARE = re.compile(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*")


class Thresholds(Struct, frozen=True, kw_only=True):
    """How much worse each metric may get, as a share of the baseline; None: the metric is not checked.

    These are policy, not measurements: the smallest change that is worth a report.
    """

    memory: float | None = 0.005
    """For ``peak_allocated_bytes``, which repeats nearly to the byte."""
    reserved: float | None = 0.1
    """For ``peak_reserved_bytes``, which depends on fragmentation of the allocator's segments."""
    nvml: float | None = 0.1
    """For ``nvml_process_peak_bytes``, which adds the CUDA context and the libraries' workspaces."""
    speed: float | None = 0.03
    """For ``step_seconds``: the minimum effect. A larger change must be significant too."""
    loss: float | None = 0.05
    """For ``final_loss`` if each side trained with one seed, so the spread between seeds is unknown."""
    loss_over_seeds: float | None = 0.01
    """For ``final_loss`` if repeated runs show that spread. A larger change must be significant too."""
    estimate: float | None = 0.03
    """For comparisons with the estimate, in either direction."""


def read_share(value: object) -> float | None:
    """Return 0.03 for ``3%`` or ``0.03``, and None for ``off``.

    Raises:
        UserError: ``value`` is neither, or it is not from 0 to under 1.
    """
    if value == "off":
        return None
    match = _SHARE.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    if match is None or isinstance(value, bool):
        raise UserError(f"{quoted(value)} is not a share: write one such as 3% or 0.03, or off")
    share = float(match[1]) / (100 if match[2] else 1)
    if share >= 1:
        raise UserError(f"{quoted(value)} is 100% or more: write a share such as 3% or 0.03, or off")
    return share


def with_shares(thresholds: Thresholds, given: dict[str, Any]) -> Thresholds:
    """Return ``thresholds`` with the ``given`` ones replaced (name → share, or None for off)."""
    values = {name: getattr(thresholds, name) for name in Thresholds.__struct_fields__}
    return Thresholds(**(values | given))
