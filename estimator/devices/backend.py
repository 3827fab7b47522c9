"""The two kinds of devices that steps run on."""

from __future__ import annotations

from typing import Literal

Backend = Literal["cuda", "cpu"]
"""Whose kernels run. They differ in what attention, dropout and autocast keep, so in memory too."""
