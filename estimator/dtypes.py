"""The dtypes of weights, and their sizes."""

from __future__ import annotations

from typing import Literal, get_args

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

ITEMSIZE: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element."""
