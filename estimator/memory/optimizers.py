"""Bytes that each optimizer keeps between steps, and allocates during its step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.temporaries import most_alive
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class OptimizerBytes(NamedTuple):
    """Bytes of an optimizer on the device."""

    states: int
    """Bytes kept between steps."""
    temporaries: int
    """Maximum of the temporary bytes during the step."""
    paged: int = 0
    """Bytes of states in unified memory. They are on the device while in use, and move to host memory if the device
    runs short. The caching allocator does not count them."""


def optimizer_bytes(optim: str, tensors: Iterable[TrainedTensors], backend: Backend) -> OptimizerBytes:
    """Return the bytes that ``optim``, a name of the table, needs for ``tensors``.

    The tensors are in the order of the optimizer's step. Identical tensors have two entries: the first one, then all
    others together.
    """
    optimizer, tensors = OPTIMIZERS[optim], list(tensors)
    kept = [state.kept(tensors, backend) for state in optimizer.states]
    return OptimizerBytes(
        states=sum(one.allocated for one in kept),
        temporaries=most_alive(optimizer.temporaries(tensors, backend)),
        paged=sum(one.paged for one in kept),
    )


def paged_states_bytes(resolved: ResolvedRecipe) -> int:
    """Return the bytes of the recipe's optimizer states in unified memory."""
    optim = resolved.recipe.optim
    return optimizer_bytes(optim, resolved.trained_tensors, "cuda").paged if OPTIMIZERS[optim].paged else 0
