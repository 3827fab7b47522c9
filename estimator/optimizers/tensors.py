"""The tensors that an optimizer steps through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from math import prod

from msgspec import Struct
from msgspec.structs import replace

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


def one_by_one(tensors: Iterable[TrainedTensors]) -> Iterator[TrainedTensors]:
    """Yield each tensor alone, in the order of the model: of repeated ones, one layer's after the other's."""
    for count, group in groupby(tensors, lambda each: each.count):
        of_layer = [replace(each, count=1) for each in group]
        for _ in range(count):
            yield from of_layer
