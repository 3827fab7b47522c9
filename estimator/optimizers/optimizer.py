"""What a row of the table says of an optimizer."""

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
    """As pip knows it."""
    module: str
    """As Python imports it."""


class Update(NamedTuple):
    """How a step passes over the tensors, gradients clipped already."""

    kernels: int = 1
    """Kernels, one after the other."""
    over: Literal["lists", "tensors"] = "lists"
    """Whether a kernel takes a list of tensors on a GPU, or one tensor."""
    accesses: int | None = None
    """Reads and writes of each element; None where a kernel reads the gradient, and reads and writes weight and
    states, once each."""
    again: int = 0
    """Reads of each element beyond those, by a kernel that takes up what another wrote."""
    itemsize: int | None = None
    """Bytes of an access; None for those of the weight's dtype."""
    calls: int | None = None
    """Operations of the processor for each tensor; None where it does nothing but send off the kernels."""


class Optimizer(Struct, frozen=True, kw_only=True):
    """One optimizer, with the settings that transformers' Trainer gives it by default."""

    name: str
    """For people."""
    library: Library
    states: tuple[State, ...] = ()
    """What it keeps between steps."""
    temporaries: Callable[[Sequence[TrainedTensors], Backend], Iterator[Round]] = none
    """What a step allocates and frees, of the tensors in the order of the step: rounds of blocks alive together."""
    update: Update
    dtypes: tuple[Dtype, ...] = DTYPES
    """Dtypes of the weights whose states it can keep in 32 bits; its library has no kernel for others."""
    states_when_made: bool = False
    """Whether its states are there before the first step, since it makes them when it is made itself."""
    steady_step: int = 2
    """The first step that does what all later ones do. Most optimizers make their states in the first step."""
    unpaged: str | None = None
    """If it pages states: the optimizer to use where there is no unified memory, as on a CPU."""
    smaller: str | None = None
    """The optimizer of the same kind with the smallest states; None if this is the one."""

    def steps(self, tensor: TrainedTensors) -> bool:
        """Return whether its library has a kernel that steps ``tensor``."""
        in_8_bits = any(isinstance(state, Blockwise) and state.coded(tensor) for state in self.states)
        return in_8_bits or tensor.dtype in self.dtypes

    @property
    def paged(self) -> bool:
        """Whether its states move to the host if the device runs short of memory."""
        return any(isinstance(state, Blockwise) and state.paged for state in self.states)
