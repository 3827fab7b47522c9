"""The fields of a row in the table of optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.dtypes import DTYPES, Dtype
from lorabench.estimator.optimizers.states import Blockwise, State
from lorabench.estimator.optimizers.temporaries import Round, none
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
    temporaries: Callable[[Sequence[TrainedTensors], Backend], Iterator[Round]] = none
    """From the tensors in the order of the step to rounds of temporaries: blocks that are alive at the same time."""
    update: Update
    dtypes: tuple[Dtype, ...] = DTYPES
    """Weight dtypes for which its library has a kernel with 32-bit states."""
    states_when_made: bool = False
    """Whether its constructor allocates the states. Most optimizers allocate them in the first step."""
    steady_step: int = 2
    """The first step that allocates the same tensors as all later ones."""
    unpaged: str | None = None
    """If it pages states: the optimizer to use without unified memory, as on a CPU."""
    smaller: str | None = None
    """The variant of this optimizer with the smallest states; None if this is it."""

    def steps(self, tensor: TrainedTensors) -> bool:
        """Return whether its library has a kernel for ``tensor``."""
        in_8_bits = any(isinstance(state, Blockwise) and state.coded(tensor) for state in self.states)
        return in_8_bits or tensor.dtype in self.dtypes

    @property
    def paged(self) -> bool:
        """Whether its states move to the host if the device runs short of memory."""
        return any(isinstance(state, Blockwise) and state.paged for state in self.states)
