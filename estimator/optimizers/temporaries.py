"""The temporaries of optimizers: tensors that a step allocates and frees.

Each function takes the trained tensors in the order of the step, and yields rounds: the bytes of each block that is
alive at the same time. Identical tensors have two entries: the first one, then the group of all others.
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


def none(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Round]:
    """Yield nothing: the step runs in place."""
    yield from ()


def adamw(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Round]:
    """Yield the temporaries of torch's unfused AdamW (`_multi_tensor_adamw`, `_single_tensor_adamw`)."""
    if backend == "cuda":
        # The foreach implementation computes the square roots of all second moments of a dtype at once. Those of the
        # previous dtype are still alive then.
        yield _one_each(tensors)
        return
    # In the for-loop, a root, its quotient, and the previous tensor's quotient are alive.
    for before, tensor in _successive(tensors):
        yield before.bytes, tensor.bytes, tensor.bytes


def rmsprop(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Round]:
    """Yield the temporaries of torch's RMSprop (`_multi_tensor_rmsprop`, `_single_tensor_rmsprop`)."""
    if backend == "cuda":
        yield _one_each(tensors)  # the roots, as in `adamw`
        return
    # In the for-loop, a root and the previous tensor's root are alive.
    for before, tensor in _successive(tensors):
        yield before.bytes, tensor.bytes


def schedule_free(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Round]:
    """Yield the temporaries of schedule-free AdamW: the roots of all second moments at once, on any device."""
    yield _one_each(tensors)


def stable_adamw(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Round]:
    """Yield the temporaries of StableAdamW (`_triton_stableadamw`, `_single_param_stableadamw`)."""
    if backend == "cuda":
        return  # the Triton kernels run in place
    # In the for-loop, a square and its divisor are alive.
    for tensor in tensors:
        yield tensor.bytes, tensor.bytes


def adagrad(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Round]:
    """Yield the temporaries of torch's Adagrad (`_multi_tensor_adagrad`, `_single_tensor_adagrad`)."""
    if backend == "cpu":
        yield from rmsprop(tensors, backend)
        return
    # The foreach implementation computes the roots of all sums of a dtype, then its scaled gradients. The previous
    # dtype's roots and scaled gradients are alive until the same tensors of this dtype replace them.
    by_dtype: Counter[str] = Counter()
    for tensor in tensors:
        by_dtype[tensor.dtype] += tensor.bytes * tensor.count
    largest = max(by_dtype, key=by_dtype.__getitem__, default="")
    yield [*_one_each(tensors), *_one_each([tensor for tensor in tensors if tensor.dtype == largest])]


def adafactor(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Round]:
    """Yield the temporaries of transformers' Adafactor (`optimization.Adafactor.step`).

    It first copies 16-bit gradients and weights to float32. Two tensors of the update's size are alive for a moment.
    The previous tensor's copies are freed only when this tensor's replace them.
    """
    for before, tensor in _successive(tensors):
        previous, size = 4 * before.elements, 4 * tensor.elements
        copies_before, copies = (
            [bytes_] * (one.dtype != "float32") for one, bytes_ in ((before, previous), (tensor, size))
        )
        # The peak is one of three moments. (1) The gradient's float32 copy is made: the previous tensor's copies and
        # update are alive. (2) The squared gradient is shifted by epsilon: the previous update is alive. (3) This
        # tensor's update is computed: two tensors of its size and the factors of its second moments are alive.
        yield *copies_before, *copies_before, previous, *copies
        yield previous, *copies, *copies, size, size
        moments = 4 * second_moments(tensor.shape) if len(tensor.shape) > 1 else 0
        yield *copies, *copies, size, size, moments


def _one_each(tensors: Sequence[TrainedTensors]) -> list[int]:
    """Return the bytes of a block for each tensor."""
    return [tensor.bytes for tensor in tensors for _ in range(tensor.count)]


def _successive(tensors: Sequence[TrainedTensors]) -> Iterator[tuple[TrainedTensors, TrainedTensors]]:
    """Yield pairs of the previous tensor (`NOTHING` at first) and a tensor, in the order of the step."""
    return pairwise([NOTHING, *tensors])
