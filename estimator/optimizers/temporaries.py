"""What optimizers allocate while they step and free again.

Each function takes the tensors in the order of the step, and yields rounds: the bytes of each block of those that are
alive together. Where tensors repeat, they are there twice, the second time with the number of all that follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.optimizers.states import second_moments
from lorabench.estimator.optimizers.tensors import TrainedTensors

Round = Sequence[int]
"""Bytes of each block that is alive."""

NOTHING = TrainedTensors((0,), 1, "float32")


def none(tensors: Sequence[TrainedTensors], kernels: Backend) -> Iterator[Round]:
    """Yield nothing: the step works in place."""
    yield from ()


def adamw(tensors: Sequence[TrainedTensors], kernels: Backend) -> Iterator[Round]:
    """Yield what torch's AdamW takes that is not fused (`_multi_tensor_adamw`, `_single_tensor_adamw`)."""
    if kernels == "cuda":
        # The foreach implementation takes the square root of all second moments of a dtype at once, and still has the
        # last dtype's when it takes the next one's.
        yield _one_each(tensors)
        return
    # The for-loop holds a root and its quotient, and the previous tensor's quotient until then.
    for before, alike in _successive(tensors):
        yield before.bytes, alike.bytes, alike.bytes


def rmsprop(tensors: Sequence[TrainedTensors], kernels: Backend) -> Iterator[Round]:
    """Yield what torch's RMSprop takes (`_multi_tensor_rmsprop`, `_single_tensor_rmsprop`)."""
    if kernels == "cuda":
        yield _one_each(tensors)  # the roots, as `adamw` has them
        return
    # The for-loop holds a root, and the previous tensor's until it is there.
    for before, alike in _successive(tensors):
        yield before.bytes, alike.bytes


def schedule_free(tensors: Sequence[TrainedTensors], kernels: Backend) -> Iterator[Round]:
    """Yield what schedule-free AdamW takes: the roots of all second moments at once, on every device."""
    yield _one_each(tensors)


def stable_adamw(tensors: Sequence[TrainedTensors], kernels: Backend) -> Iterator[Round]:
    """Yield what StableAdamW takes (`_triton_stableadamw`, `_single_param_stableadamw`)."""
    if kernels == "cuda":
        return  # Triton's kernels work in place
    # The for-loop holds a square, and what it is divided by.
    for alike in tensors:
        yield alike.bytes, alike.bytes


def adagrad(tensors: Sequence[TrainedTensors], kernels: Backend) -> Iterator[Round]:
    """Yield what torch's Adagrad takes (`_multi_tensor_adagrad`, `_single_tensor_adagrad`)."""
    if kernels == "cpu":
        yield from rmsprop(tensors, kernels)
        return
    # The foreach implementation takes the roots of all sums of a dtype and then the scaled gradients, and still has the
    # last dtype's when it takes the next one's: of each only until its own is there.
    by_dtype: Counter[str] = Counter()
    for alike in tensors:
        by_dtype[alike.dtype] += alike.bytes * alike.count
    largest = max(by_dtype, key=by_dtype.__getitem__, default="")
    yield [*_one_each(tensors), *_one_each([alike for alike in tensors if alike.dtype == largest])]


def adafactor(tensors: Sequence[TrainedTensors], kernels: Backend) -> Iterator[Round]:
    """Yield what transformers' Adafactor takes, which works through float32 copies.

    With 16-bit weights it copies gradient and weight to float32 first. The update lives twice for a moment, and the
    previous tensor's copies are released only when the next one's replace them.
    """
    for before, alike in _successive(tensors):
        previous, size = 4 * before.elements, 4 * alike.elements
        copies_before, copies = (
            [bytes_] * (one.dtype != "float32") for one, bytes_ in ((before, previous), (alike, size))
        )
        # While the gradient's float32 copy is made, the previous tensor's gradient, weight and update still live;
        # while the update is squared and shifted, its update does; then twice the update is this tensor's own, and
        # what it is the product of.
        yield *copies_before, *copies_before, previous, *copies
        yield previous, *copies, *copies, size, size
        moments = 4 * second_moments(alike.shape) if len(alike.shape) > 1 else 0
        yield *copies, *copies, size, size, moments


def _one_each(tensors: Sequence[TrainedTensors]) -> list[int]:
    """Return the bytes of a block for each tensor."""
    return [alike.bytes for alike in tensors for _ in range(alike.count)]


def _successive(tensors: Sequence[TrainedTensors]) -> Iterator[tuple[TrainedTensors, TrainedTensors]]:
    """Yield the tensor before (nothing at first) and each tensor, in the order of the step."""
    return pairwise([NOTHING, *tensors])
