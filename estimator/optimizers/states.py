"""Kinds of tensors that optimizers keep between steps.

Each kind answers two questions about tensors that train: what is kept for them, and how many bytes of that a step reads
and writes if it passes over each element once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.dtypes import DTYPES, ITEMSIZE, Dtype
from lorabench.estimator.optimizers.tensors import TrainedTensors

MIN_8BIT_ELEMENTS = 4096
"""bitsandbytes keeps float32 states for tensors with fewer elements than this (`init_state`)."""
MIN_PAGED_ELEMENTS = 100_000
"""bitsandbytes pages only the states of tensors with at least this many elements (`get_state_buffer`)."""
STATE_BLOCK = 256
"""8-bit states that share one float32 absmax."""
MAP_BYTES = 256 * 4
"""One quantisation map of 8-bit states."""


class Kept(NamedTuple):
    """Bytes kept between steps."""

    allocated: int
    """By the caching allocator of the device."""
    paged: int = 0
    """In unified memory, outside the caching allocator."""


class LikeWeights(NamedTuple):
    """States of the weight's shape and dtype."""

    what: str
    """What they are, for people."""
    each: int
    """How many for each weight."""
    dtypes: tuple[Dtype, ...] = DTYPES
    """Dtypes of the weights that have them."""

    def kept(self, tensors: Sequence[TrainedTensors], kernels: Backend) -> Kept:
        """Return what is kept."""
        return Kept(self.passed(tensors))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return the bytes that a step passes over."""
        return self.each * sum(alike.many * alike.bytes for alike in tensors if alike.dtype in self.dtypes)


class Scalars(NamedTuple):
    """A number for each tensor."""

    what: str
    """What they are, for people."""
    why: str
    """What the library does, for people."""
    itemsize: int | None = None
    """Bytes of a number; None for those of the weight's dtype."""
    kernels: tuple[Backend, ...] = ("cuda", "cpu")
    """Runs on these devices have them there; others have them on the host, or not at all."""
    dtypes: tuple[Dtype, ...] = DTYPES
    """Dtypes of the weights that have them."""

    def kept(self, tensors: Sequence[TrainedTensors], kernels: Backend) -> Kept:
        """Return what is kept."""
        if kernels not in self.kernels:
            return Kept(0)
        having = (alike for alike in tensors if alike.dtype in self.dtypes)
        return Kept(sum(alike.many * (self.itemsize or ITEMSIZE[alike.dtype]) for alike in having))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return 0: they are too small to count."""
        return 0


class RowsAndColumns(NamedTuple):
    """Adafactor's second moments in float32: of a matrix one for each row and column. Besides, the weight's RMS."""

    def kept(self, tensors: Sequence[TrainedTensors], kernels: Backend) -> Kept:
        """Return what is kept."""
        return Kept(sum(alike.many * 4 * (second_moments(alike.shape) + 1) for alike in tensors))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return 0: they are small beside the weights."""
        return 0


def second_moments(shape: tuple[int, ...]) -> int:
    """Return the elements of `RowsAndColumns` for a tensor of ``shape``."""
    return prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if len(shape) > 1 else prod(shape)


class Blockwise(NamedTuple):
    """States of bitsandbytes: an element for each of the weight's, in float32 or 8 bits, whatever the weight's dtype.

    In 8 bits, each block of `STATE_BLOCK` elements has a float32 absmax. Small tensors keep float32 states, and
    transformers' Trainer asks for them for every embedding.
    """

    each: int
    """How many for each weight."""
    bits: int
    """32, or 8 where the tensor allows."""
    maps: int
    """Quantisation maps that all tensors share: one for states with a sign, one for those without."""
    paged: bool = False

    def coded(self, tensors: TrainedTensors) -> bool:
        """Return whether the states of ``tensors`` are in 8 bits."""
        return self.bits == 8 and tensors.elements >= MIN_8BIT_ELEMENTS and not tensors.embedding

    def kept(self, tensors: Sequence[TrainedTensors], kernels: Backend) -> Kept:
        """Return what is kept."""
        allocated = paged = 0
        coded_any = False
        for alike in tensors:
            elements, coded = alike.elements, self.coded(alike)
            states = self.each * alike.many * elements * (1 if coded else 4)
            if self.paged and elements >= MIN_PAGED_ELEMENTS:
                paged += states
            else:
                allocated += states
            if coded:
                coded_any = True
                allocated += self.each * alike.many * 4 * -(-elements // STATE_BLOCK)
        return Kept(allocated + coded_any * self.maps * MAP_BYTES, paged)

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return the bytes that a step passes over."""
        return self.each * sum(alike.many * alike.elements * (1 if self.coded(alike) else 4) for alike in tensors)


State = LikeWeights | Scalars | RowsAndColumns | Blockwise
