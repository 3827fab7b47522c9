"""What each optimizer keeps between steps, and what its step takes for a moment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.tensors import TrainedTensors


class OptimizerBytes(NamedTuple):
    """What an optimizer takes on the device."""

    states: int
    """Bytes kept between steps."""
    temporaries: int
    """Most bytes that the step takes on top, for a moment."""
    paged: int = 0
    """Bytes of states in unified memory: on the device while they are used, in host memory when it runs short. They
    are not among the caching allocator's."""


def optimizer_bytes(optim: str, tensors: Iterable[TrainedTensors], kernels: Backend) -> OptimizerBytes:
    """Return what ``optim``, a name of the table, takes for ``tensors``.

    They are in the order in which the optimizer steps through them; what repeats is there twice, the second time with
    the number of all that follow.
    """
    optimizer, tensors = OPTIMIZERS[optim], list(tensors)
    kept = [state.kept(tensors, kernels) for state in optimizer.states]
    return OptimizerBytes(
        states=sum(one.allocated for one in kept),
        temporaries=max(map(sum, optimizer.temporaries(tensors, kernels)), default=0),
        paged=sum(one.paged for one in kept),
    )
