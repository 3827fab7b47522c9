"""The fields of a row in the table of optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.dtypes import DTYPES, Dtype
from lorabench.estimator.optimizers.states import Blockwise, State
from lorabench.estimator.optimizers.temporaries import Statement, none
from lorabench.estimator.optimizers.tensors import TrainedTensors


class Library(NamedTuple):
    """A Python package."""

    package: str
    """Its name for pip."""
    module: str
    """Its name for ``import``."""


class Update(NamedTuple):
    """The kernels and memory accesses of a step, after gradient clipping."""

    kernels: int = 1
    """Number of kernels, one after the other."""
    over: Literal["lists", "tensors"] = "lists"
    """Whether a kernel on a GPU updates a list of tensors, or one tensor."""
    accesses: int | None = None
    """Reads and writes per element. None: one kernel reads the gradient, and reads and writes weight and states, once
    each."""
    again: int = 0
    """Further reads per element, by kernels that read the results of earlier ones."""
    itemsize: int | None = None
    """Bytes of an access; None for the weight's dtype."""
    calls: int | None = None
    """Operations of the host per tensor; None if the host only launches the kernels."""


class Optimizer(Struct, frozen=True, kw_only=True):
    """One optimizer, with the default settings of transformers' Trainer."""

    name: str
    """Its name for people."""
    library: Library
    states: tuple[State, ...] = ()
    """The tensors that it keeps between steps."""
    temporaries: Callable[[Sequence[TrainedTensors], Backend], Iterator[Statement]] = none
    """From the tensors in the order of the step to the statements that make and free its temporaries."""
    update: Update
    dtypes: tuple[Dtype, ...] = DTYPES
    """Weight dtypes for which its library has a kernel with 32-bit states."""
    states_made: Literal["constructor", "first step", "tensor by tensor"] = "first step"
    """When it allocates the states: in its constructor, at the beginning of the first step, or in that step with the
    temporaries of each tensor (`temporaries.Mark`)."""
    idle_steps: int = 0
    """The number of steps that allocate no temporaries, before all others do."""
    unpaged: str | None = None
    """If it pages states: the optimizer to use without unified memory, as on a CPU."""
    smaller: str | None = None
    """The variant of this optimizer with the smallest states; None if this is it."""

    def steps(self, tensor: TrainedTensors) -> bool:
        """Return whether its library has a kernel for ``tensor``."""
        in_8_bits = any(isinstance(state, Blockwise) and state.coded(tensor) for state in self.states)
        return in_8_bits or tensor.dtype in self.dtypes

    @property
    def steady_step(self) -> int:
        """The first step that allocates the same tensors as all later ones."""
        return max(1, self.idle_steps) + 1

    @property
    def paged(self) -> bool:
        """Whether its states move to the host if the device runs short of memory."""
        return any(isinstance(state, Blockwise) and state.paged for state in self.states)
