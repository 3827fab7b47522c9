"""The two backends of a training step."""

from __future__ import annotations

from typing import Literal

Backend = Literal["cuda", "cpu"]
"""The device type whose kernels run. The tensors that attention, dropout and autocast keep differ between the two."""
