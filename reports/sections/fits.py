"""What fits: memory by length and batch size, for each method, on a chosen GPU."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.devices.device import DRIVER_BYTES
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.recipe import CHOICES
from lorabench.reports.packing import pack
from lorabench.reports.planning import RANKS, methods, planning
from lorabench.reports.subject import Subject

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Lengths on the page, up to the model's limit."""


def fits(subject: Subject) -> dict[str, Any] | None:
    """Return the choices, and the data for the page's estimates."""
    if not subject.models:
        return None
    usual = recipe_for(subject.models[0]).recipe
    shown = [method for method in CHOICES["method"] if any(method in methods(spec) for spec in subject.models)]
    return {
        "planning": pack(planning(subject.models, subject.gpus)),
        "models": [spec.name for spec in subject.models],
        "methods": shown,
        "ranks": RANKS,
        "rank": usual.rank,
        "gpus": subject.gpus,
        "driver_bytes": DRIVER_BYTES,
        "charts": [{"method": method, "batchSizes": BATCH_SIZES, "lengths": LENGTHS} for method in shown],
    }
