"""Kinds of tensors that optimizers keep between steps.

Each kind has methods for the bytes of trained tensors' states. Another method returns the bytes that a step reads (or
writes) if it accesses each element once.
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
"""Number of 8-bit states that share one float32 absmax."""
MAP_BYTES = 256 * 4
"""Bytes of one quantisation map of 8-bit states."""


class Kept(NamedTuple):
    """Bytes of states between steps."""

    allocated: int
    """Bytes in the device's caching allocator."""
    paged: int = 0
    """Bytes in unified memory, outside the caching allocator."""


class LikeWeights(NamedTuple):
    """States of the weight's shape and dtype."""

    what: str
    """Name for people."""
    each: int
    """Number of states per weight."""
    dtypes: tuple[Dtype, ...] = DTYPES
    """Dtypes of the weights that have them."""

    def blocks(self, tensor: TrainedTensors, backend: Backend) -> tuple[int, ...]:
        """Return the bytes of each block that the states of one tensor take, in the order of their allocation."""
        return (tensor.bytes,) * self.each if tensor.dtype in self.dtypes else ()

    def kept(self, tensors: Sequence[TrainedTensors], backend: Backend) -> Kept:
        """Return the bytes of the states of ``tensors``."""
        return Kept(_allocated(self, tensors, backend))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return the bytes that a step reads if it accesses each state once."""
        return self.each * sum(group.count * group.bytes for group in tensors if group.dtype in self.dtypes)


class Scalars(NamedTuple):
    """One number per tensor."""

    what: str
    """Name for people."""
    why: str
    """The library's behaviour, for people."""
    itemsize: int | None = None
    """Bytes of a number; None for the weight's dtype."""
    backends: tuple[Backend, ...] = ("cuda", "cpu")
    """Backends that have them on the device; other backends have them on the host, or not at all."""
    dtypes: tuple[Dtype, ...] = DTYPES
    """Dtypes of the weights that have them."""

    def blocks(self, tensor: TrainedTensors, backend: Backend) -> tuple[int, ...]:
        """Return the bytes of each block that the states of one tensor take, in the order of their allocation."""
        has_one = backend in self.backends and tensor.dtype in self.dtypes
        return (self.itemsize or ITEMSIZE[tensor.dtype],) if has_one else ()

    def kept(self, tensors: Sequence[TrainedTensors], backend: Backend) -> Kept:
        """Return the bytes of the states of ``tensors``."""
        return Kept(_allocated(self, tensors, backend))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return 0: the states are too small to count."""
        return 0


class RowsAndColumns(NamedTuple):
    """Adafactor's float32 states: a second moment for each row and column of a matrix, and the weight's RMS."""

    def blocks(self, tensor: TrainedTensors, backend: Backend) -> tuple[int, ...]:
        """Return the bytes of each block that the states of one tensor take, in the order of their allocation."""
        *leading, last = tensor.shape
        if not leading:
            return 4 * last, 4
        return 4 * prod(leading), 4 * prod(leading[:-1]) * last, 4

    def kept(self, tensors: Sequence[TrainedTensors], backend: Backend) -> Kept:
        """Return the bytes of the states of ``tensors``."""
        return Kept(_allocated(self, tensors, backend))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return 0: the states are small compared with the weights."""
        return 0


def second_moments(shape: tuple[int, ...]) -> int:
    """Return the elements of `RowsAndColumns` for a tensor of ``shape``."""
    return prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if len(shape) > 1 else prod(shape)


class Blockwise(NamedTuple):
    """States of bitsandbytes, of the weight's shape, in float32 or 8 bits for any dtype of the weight.

    In 8 bits, each block of `STATE_BLOCK` elements has a float32 absmax. Small tensors keep float32 states, and
    transformers' Trainer requests float32 states for every embedding.
    """

    each: int
    """Number of states per weight."""
    bits: int
    """32; or 8 for tensors that `coded` accepts."""
    maps: int
    """Number of quantisation maps, which all tensors share: one for signed states, one for unsigned states."""
    slow: bool = False
    """Whether there are two first moments, a fast and a slow one, in one tensor (`AdEMAMix.init_state`)."""
    paged: bool = False

    def coded(self, tensors: TrainedTensors) -> bool:
        """Return whether the states of ``tensors`` are in 8 bits."""
        return self.bits == 8 and tensors.elements >= MIN_8BIT_ELEMENTS and not tensors.embedding

    def paged_bytes(self, tensor: TrainedTensors) -> int:
        """Return the bytes of one tensor's states in unified memory."""
        return self._states(tensor) if self.paged and tensor.elements >= MIN_PAGED_ELEMENTS else 0

    def _states(self, tensor: TrainedTensors) -> int:
        return self.each * tensor.elements * (1 if self.coded(tensor) else 4)

    def blocks(self, tensor: TrainedTensors, backend: Backend) -> tuple[int, ...]:
        """Return the bytes of each block that the states of one tensor take, in the order of their allocation."""
        each = self._states(tensor) // self.each
        in_block = (2, *(1,) * (self.each - 2)) if self.slow else (1,) * self.each
        states = () if self.paged_bytes(tensor) else tuple(number * each for number in in_block)
        constants = 4 * -(-tensor.elements // STATE_BLOCK)
        absmax = tuple(number * constants for number in in_block) if self.coded(tensor) else ()
        return (*absmax, *states) if self.slow else (*states, *absmax)

    def kept(self, tensors: Sequence[TrainedTensors], backend: Backend) -> Kept:
        """Return the bytes of the states of ``tensors``."""
        allocated = _allocated(self, tensors, backend) + sum(shared_blocks(self, tensors))
        return Kept(allocated, sum(group.count * self.paged_bytes(group) for group in tensors))

    def passed(self, tensors: Sequence[TrainedTensors]) -> int:
        """Return the bytes that a step reads if it accesses each state once."""
        return self.each * sum(group.count * group.elements * (1 if self.coded(group) else 4) for group in tensors)


State = LikeWeights | Scalars | RowsAndColumns | Blockwise


def shared_blocks(state: State, tensors: Sequence[TrainedTensors]) -> tuple[int, ...]:
    """Return the bytes of each block that all tensors share: bitsandbytes' quantisation maps."""
    shares = isinstance(state, Blockwise) and any(map(state.coded, tensors))
    return (MAP_BYTES,) * state.maps if isinstance(state, Blockwise) and shares else ()


def _allocated(state: State, tensors: Sequence[TrainedTensors], backend: Backend) -> int:
    return sum(group.count * sum(state.blocks(group, backend)) for group in tensors)
