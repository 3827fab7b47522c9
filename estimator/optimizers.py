"""What each optimizer keeps between steps, and what its step takes for a moment.

Read in torch 2.13 (`torch.optim`), bitsandbytes 0.50 (`optim.optimizer`) and transformers 5 (`optimization.Adafactor`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from typing import NamedTuple

from lorabench.estimator.breakdown import Kernels
from lorabench.estimator.recipes import ITEMSIZE, Dtype, Optim

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


def optimizer_bytes(
    optim: Optim,
    shapes: Iterable[tuple[tuple[int, ...], int]],
    dtype: Dtype,
    kernels: Kernels,
    embeddings: Iterable[tuple[int, ...]] = (),
) -> OptimizerBytes:
    """Return what ``optim`` takes for tensors of ``shapes`` (shape, how many), which train in ``dtype``.

    The shapes are in the order in which the optimizer steps through them; what repeats is there twice, the second time
    with the number of all that follow. ``embeddings`` are the shapes of the embeddings among them.
    """
    shapes = list(shapes)
    tensors = [(shape, prod(shape), count) for shape, count in shapes]
    elements = sum(size * count for _, size, count in tensors)
    itemsize = ITEMSIZE[dtype]
    if optim == "sgd":
        return OptimizerBytes(states=0, temporaries=0)
    if optim == "adafactor":
        return _adafactor(tensors, itemsize)
    if optim in ("adamw_torch", "adamw_torch_fused"):
        # The step counter is a float32 tensor of its own for each parameter: on the device for the fused kernel, on
        # the host otherwise (which is the device of a CPU run).
        steps = 4 * sum(count for _, _, count in tensors) if optim.endswith("fused") or kernels == "cpu" else 0
        if optim == "adamw_torch_fused":
            temporaries = 0
        elif kernels == "cuda":
            # The foreach implementation takes the square root of all second moments at once.
            temporaries = elements * itemsize
        else:
            # The for-loop holds a root and its quotient, and the previous tensor's quotient until then.
            temporaries = max((before + 2 * size for before, size in _successive(tensors)), default=0) * itemsize
        return OptimizerBytes(states=2 * elements * itemsize + steps, temporaries=temporaries)
    return _bitsandbytes(optim, shapes, embeddings)


def bitsandbytes_states(
    optim: Optim, shapes: Iterable[tuple[tuple[int, ...], int]], embeddings: Iterable[tuple[int, ...]]
) -> Iterator[tuple[int, int, bool]]:
    """Yield the elements of each tensor, how many there are of it, and whether its states are kept in 8 bits.

    Small tensors keep float32 states, and transformers' Trainer asks for them for every embedding.
    """
    left = Counter(embeddings)
    for shape, count in shapes:
        size = prod(shape)
        quantized = optim.endswith("8bit") and size >= MIN_8BIT_ELEMENTS
        wide = min(count, left[shape]) if quantized else 0
        left[shape] -= wide
        if wide:
            yield size, wide, False
        if count > wide:
            yield size, count - wide, quantized


def _bitsandbytes(
    optim: Optim, shapes: list[tuple[tuple[int, ...], int]], embeddings: Iterable[tuple[int, ...]]
) -> OptimizerBytes:
    moments = 1 if "lion" in optim else 2
    kept = paged = 0
    quantized_any = False
    for size, count, quantized in bitsandbytes_states(optim, shapes, embeddings):
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


def _successive(tensors: list[tuple[tuple[int, ...], int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the elements of the tensor before (0 at first) and of each tensor, in the order of the step."""
    before = 0
    for _, size, _ in tensors:
        yield before, size
        before = size


def _adafactor(tensors: list[tuple[tuple[int, ...], int, int]], itemsize: int) -> OptimizerBytes:
    """Adafactor keeps a float32 row and column of second moments and the weight's RMS, and works through copies.

    With 16-bit weights it copies gradient and weight to float32 first. The update lives twice for a moment, and the
    previous tensor's copies are released only when the next one's replace them.
    """
    states = 0
    for shape, size, count in tensors:
        factored = len(shape) >= 2
        moments = prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if factored else size
        states += count * 4 * (moments + 1)
    copies = 0 if itemsize == 4 else 1
    temporaries = 0
    for previous, size in _successive(tensors):
        # While the gradient's float32 copy is made, the previous tensor's gradient, weight and update still live;
        # while the update is squared and shifted, its update does; then twice the update is this tensor's own.
        temporaries = max(
            temporaries,
            4 * ((2 * copies + 1) * previous + copies * size),
            4 * (previous + 2 * copies * size + 2 * size),
        )
    return OptimizerBytes(states=states, temporaries=temporaries)
