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

    def blocks(self, tensor: TrainedTensors, kernels: Backend) -> tuple[int, ...]:
        """Return the bytes of each block that is allocated for one tensor, in that order."""
        return (tensor.bytes,) * self.each if tensor.dtype in self.dtypes else ()

    def kept(self, tensors: Sequence[TrainedTensors], kernels: Backend) -> Kept:
        """Return what is kept."""
        return Kept(_allocated(self, tensors, kernels))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return the bytes that a step passes over."""
        return self.each * sum(alike.count * alike.bytes for alike in tensors if alike.dtype in self.dtypes)


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

    def blocks(self, tensor: TrainedTensors, kernels: Backend) -> tuple[int, ...]:
        """Return the bytes of each block that is allocated for one tensor, in that order."""
        has_one = kernels in self.kernels and tensor.dtype in self.dtypes
        return (self.itemsize or ITEMSIZE[tensor.dtype],) if has_one else ()

    def kept(self, tensors: Sequence[TrainedTensors], kernels: Backend) -> Kept:
        """Return what is kept."""
        return Kept(_allocated(self, tensors, kernels))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return 0: they are too small to count."""
        return 0


class RowsAndColumns(NamedTuple):
    """Adafactor's second moments in float32: of a matrix one for each row and column. Besides, the weight's RMS."""

    def blocks(self, tensor: TrainedTensors, kernels: Backend) -> tuple[int, ...]:
        """Return the bytes of each block that is allocated for one tensor, in that order."""
        *leading, last = tensor.shape
        if not leading:
            return 4 * last, 4
        return 4 * prod(leading), 4 * prod(leading[:-1]) * last, 4

    def kept(self, tensors: Sequence[TrainedTensors], kernels: Backend) -> Kept:
        """Return what is kept."""
        return Kept(_allocated(self, tensors, kernels))

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

    def paged_bytes(self, tensor: TrainedTensors) -> int:
        """Return the bytes of one tensor's states in unified memory."""
        return self._states(tensor) if self.paged and tensor.elements >= MIN_PAGED_ELEMENTS else 0

    def _states(self, tensor: TrainedTensors) -> int:
        return self.each * tensor.elements * (1 if self.coded(tensor) else 4)

    def blocks(self, tensor: TrainedTensors, kernels: Backend) -> tuple[int, ...]:
        """Return the bytes of each block that is allocated for one tensor, in that order."""
        states = () if self.paged_bytes(tensor) else (self._states(tensor) // self.each,) * self.each
        absmax = (4 * -(-tensor.elements // STATE_BLOCK),) * self.each if self.coded(tensor) else ()
        return *states, *absmax

    def kept(self, tensors: Sequence[TrainedTensors], kernels: Backend) -> Kept:
        """Return what is kept."""
        allocated = _allocated(self, tensors, kernels) + sum(shared_blocks(self, tensors))
        return Kept(allocated, sum(alike.count * self.paged_bytes(alike) for alike in tensors))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return the bytes that a step passes over."""
        return self.each * sum(alike.count * alike.elements * (1 if self.coded(alike) else 4) for alike in tensors)


State = LikeWeights | Scalars | RowsAndColumns | Blockwise


def shared_blocks(state: State, tensors: Sequence[TrainedTensors]) -> tuple[int, ...]:
    """Return the bytes of each block that all tensors share: bitsandbytes' quantisation maps."""
    shares = isinstance(state, Blockwise) and any(map(state.coded, tensors))
    return (MAP_BYTES,) * state.maps if isinstance(state, Blockwise) and shares else ()


def _allocated(state: State, tensors: Sequence[TrainedTensors], kernels: Backend) -> int:
    return sum(alike.count * sum(state.blocks(alike, kernels)) for alike in tensors)
