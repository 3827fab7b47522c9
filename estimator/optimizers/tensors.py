"""The tensors that an optimizer steps through."""

from __future__ import annotations

from math import prod

from msgspec import Struct

from lorabench.estimator.dtypes import ITEMSIZE, Dtype


class TrainedTensors(Struct, frozen=True):
    """Trained tensors of one shape and dtype."""

    shape: tuple[int, ...]
    count: int
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
