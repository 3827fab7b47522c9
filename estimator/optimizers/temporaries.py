"""What optimizers allocate while they step and free again.

Each function takes the tensors in the order of the step, and returns the most bytes that are there at once. Where
tensors repeat, they are there twice, the second time with the number of all that follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.optimizers.states import second_moments
from lorabench.estimator.optimizers.tensors import TrainedTensors

NOTHING = TrainedTensors((0,), 1, "float32")


def none(tensors: Sequence[TrainedTensors], kernels: Backend) -> int:
    """Return 0: the step works in place."""
    return 0


def adamw(tensors: Sequence[TrainedTensors], kernels: Backend) -> int:
    """Return what torch's AdamW takes that is not fused (`_multi_tensor_adamw`, `_single_tensor_adamw`)."""
    if kernels == "cuda":
        # The foreach implementation takes the square root of all second moments of a dtype at once, and still has the
        # last dtype's when it takes the next one's.
        return sum(alike.bytes * alike.many for alike in tensors)
    # The for-loop holds a root and its quotient, and the previous tensor's quotient until then.
    return max((before.bytes + 2 * alike.bytes for before, alike in _successive(tensors)), default=0)


def rmsprop(tensors: Sequence[TrainedTensors], kernels: Backend) -> int:
    """Return what torch's RMSprop takes (`_multi_tensor_rmsprop`, `_single_tensor_rmsprop`)."""
    if kernels == "cuda":
        return sum(alike.bytes * alike.many for alike in tensors)  # the roots, as `adamw` has them
    # The for-loop holds a root, and the previous tensor's until it is there.
    return max((before.bytes + alike.bytes for before, alike in _successive(tensors)), default=0)


def schedule_free(tensors: Sequence[TrainedTensors], kernels: Backend) -> int:
    """Return what schedule-free AdamW takes: the roots of all second moments at once, on every device."""
    return sum(alike.bytes * alike.many for alike in tensors)


def stable_adamw(tensors: Sequence[TrainedTensors], kernels: Backend) -> int:
    """Return what StableAdamW takes (`_triton_stableadamw`, `_single_param_stableadamw`)."""
    if kernels == "cuda":
        return 0  # Triton's kernels work in place
    # The for-loop holds a square, and what it is divided by.
    return max((2 * alike.bytes for alike in tensors), default=0)


def adagrad(tensors: Sequence[TrainedTensors], kernels: Backend) -> int:
    """Return what torch's Adagrad takes (`_multi_tensor_adagrad`, `_single_tensor_adagrad`)."""
    if kernels == "cpu":
        return rmsprop(tensors, kernels)
    # The foreach implementation takes the roots of all sums of a dtype and then the scaled gradients, and still has the
    # last dtype's when it takes the next one's: of each only until its own is there.
    by_dtype: Counter[str] = Counter()
    for alike in tensors:
        by_dtype[alike.dtype] += alike.bytes * alike.many
    return sum(by_dtype.values()) + max(by_dtype.values(), default=0)


def adafactor(tensors: Sequence[TrainedTensors], kernels: Backend) -> int:
    """Return what transformers' Adafactor takes, which works through float32 copies.

    With 16-bit weights it copies gradient and weight to float32 first. The update lives twice for a moment, and the
    previous tensor's copies are released only when the next one's replace them.
    """
    most = 0
    for before, alike in _successive(tensors):
        previous, size = before.elements, alike.elements
        copies_before, copies = (int(one.dtype != "float32") for one in (before, alike))
        # While the gradient's float32 copy is made, the previous tensor's gradient, weight and update still live;
        # while the update is squared and shifted, its update does; then twice the update is this tensor's own, and
        # what it is the product of.
        most = max(
            most,
            4 * ((2 * copies_before + 1) * previous + copies * size),
            4 * (previous + 2 * copies * size + 2 * size),
            4 * (2 * copies * size + 2 * size + (second_moments(alike.shape) if len(alike.shape) > 1 else 0)),
        )
    return most


def _successive(tensors: Sequence[TrainedTensors]) -> Iterator[tuple[TrainedTensors, TrainedTensors]]:
    """Yield the tensor before (nothing at first) and each tensor, in the order of the step."""
    return pairwise([NOTHING, *tensors])
