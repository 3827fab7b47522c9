"""What each optimizer keeps between steps, and what its step takes for a moment.

Read in torch 2.13 (`torch.optim`), bitsandbytes 0.50 (`optim.optimizer`) and transformers 5 (`optimization.Adafactor`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import prod
from typing import NamedTuple

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.recipes.parameters import TrainedTensors
from lorabench.estimator.recipes.recipe import ITEMSIZE, Optim

MIN_8BIT_ELEMENTS = 4096
"""bitsandbytes keeps float32 states for tensors with fewer elements than this."""
MIN_PAGED_ELEMENTS = 100_000
"""bitsandbytes pages only the states of tensors with at least this many elements."""
STATE_BLOCK = 256
"""8-bit states that share one float32 absmax."""
QMAP_BYTES = 256 * 4
"""One quantisation map of 8-bit states; an optimizer holds one for each of its states, shared by all tensors."""


class OptimizerBytes(NamedTuple):
    """What an optimizer takes on the device."""

    states: int
    """Bytes kept between steps."""
    temporaries: int
    """Most bytes that the step takes on top, for a moment."""
    paged: int = 0
    """Bytes of states in unified memory: on the device while they are used, in host memory when it runs short. They
    are not among the caching allocator's."""


def optimizer_bytes(optim: Optim, tensors: Iterable[TrainedTensors], kernels: Backend) -> OptimizerBytes:
    """Return what ``optim`` takes for ``tensors``.

    They are in the order in which the optimizer steps through them; what repeats is there twice, the second time with
    the number of all that follow.
    """
    tensors = list(tensors)
    if optim == "sgd":
        return OptimizerBytes(states=0, temporaries=0)
    if optim == "adafactor":
        return _adafactor(tensors)
    if optim in ("adamw_torch", "adamw_torch_fused"):
        weights = sum(_bytes(alike) * alike.many for alike in tensors)
        # The step counter is a float32 tensor of its own for each parameter: on the device for the fused kernel, on
        # the host otherwise (which is the device of a CPU run).
        many = sum(alike.many for alike in tensors)
        steps = 4 * many if optim.endswith("fused") or kernels == "cpu" else 0
        if optim == "adamw_torch_fused":
            temporaries = 0
        elif kernels == "cuda":
            # The foreach implementation takes the square root of all second moments of a dtype at once, and still has
            # the last dtype's when it takes the next one's.
            temporaries = weights
        else:
            # The for-loop holds a root and its quotient, and the previous tensor's quotient until then.
            temporaries = max((_bytes(before) + 2 * _bytes(alike) for before, alike in _successive(tensors)), default=0)
        return OptimizerBytes(states=2 * weights + steps, temporaries=temporaries)
    return _bitsandbytes(optim, tensors)


def in_8bit(optim: Optim, tensors: TrainedTensors) -> bool:
    """Return whether bitsandbytes keeps the states of ``tensors`` in 8 bits.

    Small tensors keep float32 states, and transformers' Trainer asks for them for every embedding.
    """
    return optim.endswith("8bit") and prod(tensors.shape) >= MIN_8BIT_ELEMENTS and not tensors.embedding


def _bitsandbytes(optim: Optim, tensors: list[TrainedTensors]) -> OptimizerBytes:
    moments = 1 if "lion" in optim else 2
    kept = paged = 0
    quantized_any = False
    for alike in tensors:
        size, count, quantized = prod(alike.shape), alike.many, in_8bit(optim, alike)
        state = moments * size * (1 if quantized else 4)
        if optim.startswith("paged") and size >= MIN_PAGED_ELEMENTS:
            paged += count * state
        else:
            kept += count * state
        if quantized:
            quantized_any = True
            kept += count * moments * 4 * -(-size // STATE_BLOCK)
    if quantized_any:
        kept += moments * QMAP_BYTES
    return OptimizerBytes(states=kept, temporaries=0, paged=paged)


def _bytes(tensors: TrainedTensors) -> int:
    """Return the bytes of one of them."""
    return prod(tensors.shape) * ITEMSIZE[tensors.dtype]


NOTHING = TrainedTensors((0,), 1, "float32")


def _successive(tensors: list[TrainedTensors]) -> Iterator[tuple[TrainedTensors, TrainedTensors]]:
    """Yield the tensor before (nothing at first) and each tensor, in the order of the step."""
    return pairwise([NOTHING, *tensors])


def _adafactor(tensors: list[TrainedTensors]) -> OptimizerBytes:
    """Adafactor keeps a float32 row and column of second moments and the weight's RMS, and works through copies.

    With 16-bit weights it copies gradient and weight to float32 first. The update lives twice for a moment, and the
    previous tensor's copies are released only when the next one's replace them.
    """
    states = sum(alike.many * 4 * (_second_moments(alike.shape) + 1) for alike in tensors)
    temporaries = 0
    for before, alike in _successive(tensors):
        previous, size = prod(before.shape), prod(alike.shape)
        copies_before, copies = (int(one.dtype != "float32") for one in (before, alike))
        # While the gradient's float32 copy is made, the previous tensor's gradient, weight and update still live;
        # while the update is squared and shifted, its update does; then twice the update is this tensor's own, and
        # what it is the product of.
        temporaries = max(
            temporaries,
            4 * ((2 * copies_before + 1) * previous + copies * size),
            4 * (previous + 2 * copies * size + 2 * size),
            4 * (2 * copies * size + 2 * size + (_second_moments(alike.shape) if len(alike.shape) > 1 else 0)),
        )
    return OptimizerBytes(states=states, temporaries=temporaries)


def _second_moments(shape: tuple[int, ...]) -> int:
    """Return the elements of a tensor's second moments: of a matrix one for each row and column."""
    return prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if len(shape) > 1 else prod(shape)
