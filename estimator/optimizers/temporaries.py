"""The temporaries of optimizers: tensors that a step allocates and frees.

Each function restates the code of a step, as far as it makes tensors: it takes the trained tensors in the order of the
step, and yields statements in the order of the code, with the code's names of variables. A variable refers to its
tensors until it gets others, so the last tensors of a loop live until the step ends.

Where several tensors are identical, callers that only ask for the most bytes may pass one entry for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from math import prod
from typing import NamedTuple

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.optimizers.tensors import TrainedTensors


class Assign(NamedTuple):
    """A variable gets new tensors. Those that it had are freed afterwards, as in Python."""

    variable: str
    blocks: Sequence[int] = ()
    """The bytes of each, in the order of their allocation; empty if the variable is deleted."""


class MeanOfRows(NamedTuple):
    """A mean over rows of float32, whose kernel may need a buffer while it runs."""

    rows: int
    outputs: int
    """Elements of a row."""


class Mark(Enum):
    """A moment of the step."""

    STATES = "the next tensor's states are made, in the first step"


Statement = Assign | MeanOfRows | Mark


def most_alive(statements: Iterable[Statement]) -> int:
    """Return the most bytes of tensors that are alive at the same time, without buffers of sums."""
    alive: dict[str, int] = {}
    most = 0
    for statement in statements:
        if isinstance(statement, Assign):
            made = sum(statement.blocks)
            most = max(most, sum(alive.values()) + made)
            alive[statement.variable] = made
    return most


def none(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Statement]:
    """Yield nothing: the step runs in place."""
    yield from ()


def adamw(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Statement]:
    """Yield the temporaries of torch's unfused AdamW (`_multi_tensor_adam`, `_single_tensor_adam`)."""
    if backend == "cuda":
        for of_dtype in _by_dtype(tensors):
            yield Assign("exp_avg_sq_sqrt", of_dtype)
        return
    for tensor in tensors:
        yield Assign("root", [tensor.bytes])
        yield Assign("denom", [tensor.bytes])  # the root's quotient
        yield Assign("root")


def rmsprop(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Statement]:
    """Yield the temporaries of torch's RMSprop (`_multi_tensor_rmsprop`, `_single_tensor_rmsprop`): the roots."""
    yield from _roots("avg", tensors, backend)


def adagrad(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Statement]:
    """Yield the temporaries of torch's Adagrad (`_multi_tensor_adagrad`, `_single_tensor_adagrad`)."""
    if backend == "cpu":
        yield from _roots("std", tensors, backend)
        return
    for of_dtype in _by_dtype(tensors):
        yield Assign("std", of_dtype)
        yield Assign("numerator", of_dtype)  # the scaled gradients


def _roots(variable: str, tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Statement]:
    """Yield a root of each tensor's states: of all tensors of a dtype at once by foreach, on CUDA, or one by one."""
    blocks = _by_dtype(tensors) if backend == "cuda" else [[tensor.bytes] for tensor in tensors]
    for each in blocks:
        yield Assign(variable, each)


def schedule_free(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Statement]:
    """Yield the temporaries of schedule-free AdamW and RAdam: the roots of all second moments at once on any device."""
    yield Assign("denom", _blocks(tensors))


def stable_adamw(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Statement]:
    """Yield the temporaries of StableAdamW (`_triton_stableadamw`, `_single_param_stableadamw`)."""
    if backend == "cuda":
        return  # the Triton kernels run in place
    for tensor in tensors:
        yield Assign("square", [tensor.bytes])
        yield Assign("divisor", [tensor.bytes])
        for variable in ("divisor", "square"):
            yield Assign(variable)
        yield Assign("root", [tensor.bytes])
        yield Assign("root")


SCALAR = [4]
"""The bytes of a float32."""


def adafactor(tensors: Sequence[TrainedTensors], backend: Backend) -> Iterator[Statement]:
    """Yield the temporaries of transformers' Adafactor (`optimization.Adafactor.step`), one tensor after the other.

    A tensor's RMS is a state that each step replaces.
    """
    for tensor in tensors:
        size = [4 * tensor.elements]
        copy = size if tensor.dtype != "float32" else []
        *leading, last = tensor.shape
        yield Assign("grad")
        yield Assign("grad", copy)
        yield Mark.STATES
        yield Assign("p_data_fp32")
        yield Assign("p_data_fp32", copy)
        yield from _rms()
        yield Assign("square", size)
        yield Assign("update", size)  # the square plus epsilon
        yield Assign("square")
        if leading:
            rows, columns = 4 * prod(leading), 4 * prod(leading[:-1]) * last
            yield Assign("mean", [rows])
            yield Assign("mean")
            yield Assign("mean", [columns])
            if len(leading) == 1:
                yield MeanOfRows(leading[0], last)
            yield Assign("mean")
            yield Assign("mean", [4 * prod(leading[:-1])])
            yield Assign("r_factor", [rows])
            yield Assign("mean")
            yield Assign("c_factor", [columns])
            yield Assign("update", size)
            yield Assign("c_factor")
            yield Assign("r_factor")
        else:
            yield Assign("update", size)
        yield from _rms()
        yield Assign("negative", size)
        yield Assign("negative")


def _rms() -> Iterator[Statement]:
    """Yield the temporaries of `Adafactor._rms`: the norm, and its quotient."""
    yield Assign("norm", SCALAR)
    yield Assign("rms", SCALAR)
    for variable in ("norm", "rms"):
        yield Assign(variable)


def _by_dtype(tensors: Sequence[TrainedTensors]) -> Iterator[list[int]]:
    """Yield the bytes of a block for each tensor of a dtype, for one dtype after the other.

    The dtype that comes last in the model is the first (`_group_tensors_by_device_and_dtype` of torch, which keeps the
    groups in a std::unordered_map).
    """
    for dtype in reversed(dict.fromkeys(tensor.dtype for tensor in tensors)):
        yield _blocks(tensor for tensor in tensors if tensor.dtype == dtype)


def _blocks(tensors: Iterable[TrainedTensors]) -> list[int]:
    """Return the bytes of a block for each tensor."""
    return [tensor.bytes for tensor in tensors for _ in range(tensor.count)]
