"""The dtypes of weights, and their sizes."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]

ITEMSIZE: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element."""
