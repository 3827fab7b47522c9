"""The tensors that an optimizer steps through."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from lorabench.estimator.dtypes import ITEMSIZE, Dtype


class TrainedTensors(NamedTuple):
    """Tensors that train and are alike."""

    shape: tuple[int, ...]
    many: int
    dtype: Dtype
    embedding: bool = False

    @property
    def elements(self) -> int:
        """Elements of one of them."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of one of them."""
        return self.elements * ITEMSIZE[self.dtype]
