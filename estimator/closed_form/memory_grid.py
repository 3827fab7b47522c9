"""The closed form of memory for arrays of batch sizes, lengths and ranks: `estimate_memory` in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from lorabench.estimator.closed_form.forms import Setup, branches, compile_form, persistent_of
from lorabench.estimator.closed_form.sizes import B, R, S, Values
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import UserError
from lorabench.estimator.methods.catalogue import methods_with
from lorabench.estimator.recipes.resolved import ResolvedRecipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

LARGEST_SETTING = 2**31 - 1
"""The largest value of a setting in a `Recipe`."""
LARGEST_EXACT = 2**53
"""Sums are computed in float64, which is exact for integers up to this: 8 PiB."""
CHUNK = 8192
"""Recipes per block, so that all their candidates fit into the processor's cache."""


def estimate_memory_grid(
    resolved: ResolvedRecipe,
    batch_sizes: ArrayLike,
    seq_lens: ArrayLike,
    ranks: ArrayLike | None = None,
    backend: Backend = "cuda",
    compute_capability: str | None = None,
) -> NDArray[np.int64]:
    """Return ``peak_allocated_bytes`` of the recipe with each batch size, length and rank instead of its own.

    The three are integers that broadcast against each other, and the result has their common shape (``numpy.ix_`` makes
    a grid of three lists). Without ranks, the recipe's own rank is used. Each element equals that of `estimate_memory`.

    Raises:
        UserError: as in `estimate_memory`; a number is out of range; shapes do not broadcast; ranks are given for a
            method without ranks; a recipe needs 8 PiB or more.
    """
    import numpy as np

    shape, parts = grid_parts(resolved, batch_sizes, seq_lens, ranks)
    peaks = np.empty(shape, np.int64)
    for part in parts:
        peaks.flat[part.places] = _peaks(part, backend, compute_capability)
    return peaks


class GridPart(NamedTuple):
    """Recipes of a grid that run the same operations and differ only in sizes."""

    places: NDArray[np.int64]
    """Index of each in the flat grid."""
    example: ResolvedRecipe
    """One of them, except for its rank."""
    batch_sizes: NDArray[np.float64]
    seq_lens: NDArray[np.float64]
    ranks: NDArray[np.int64]
    """0 without adapters."""


def grid_parts(
    resolved: ResolvedRecipe, batch_sizes: ArrayLike, seq_lens: ArrayLike, ranks: ArrayLike | None
) -> tuple[tuple[int, ...], Iterator[GridPart]]:
    """Return the shape of the grid, and the grid in parts of up to `CHUNK` recipes.

    Raises:
        UserError: as in `estimate_memory_grid`, for wrong numbers.
    """
    import numpy as np

    recipe = resolved.recipe
    if ranks is not None and recipe.rank is None:
        others = " or ".join(methods_with("rank"))
        raise UserError(f"ranks do not apply to method {recipe.method}: leave them out, or use {others}")
    given = {"batch_sizes": batch_sizes, "seq_lens": seq_lens, "ranks": recipe.rank or 1 if ranks is None else ranks}
    arrays = [_settings(name, values) for name, values in given.items()]
    try:
        batch, length, rank = np.broadcast_arrays(*arrays)
    except ValueError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(given, arrays, strict=True))
        raise UserError(f"shapes that do not broadcast against each other: {shapes}") from error
    return batch.shape, _parts(resolved, batch.ravel(), length.ravel(), rank.ravel() * (recipe.rank is not None))


def _parts(
    resolved: ResolvedRecipe, batch: NDArray[np.int64], length: NDArray[np.int64], rank: NDArray[np.int64]
) -> Iterator[GridPart]:
    import numpy as np

    several, filled = branches(resolved.spec, batch, length)
    for branch in (several & filled, several & ~filled, ~several & filled, ~several & ~filled):
        places = np.flatnonzero(branch)
        for start in range(0, places.size, CHUNK):
            some = places[start : start + CHUNK]
            example = resolved.replaced(batch_size=int(batch[some[0]]), seq_len=int(length[some[0]]))
            yield GridPart(some, example, batch[some].astype(np.float64), length[some].astype(np.float64), rank[some])


def _settings(name: str, values: ArrayLike) -> NDArray[np.int64]:
    import numpy as np

    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name}: must be an array of whole numbers, in rows of equal length") from error
    if array.size and array.dtype.kind not in "iu":
        raise UserError(f"{name}: must be whole numbers, not {array.dtype}")
    if array.size and not (array.min() >= 1 and array.max() <= LARGEST_SETTING):
        raise UserError(f"{name}: must be from 1 to {LARGEST_SETTING}, but range from {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _peaks(part: GridPart, backend: Backend, compute_capability: str | None) -> NDArray[np.int64]:
    import numpy as np

    setup, optim = Setup(part.example, backend, compute_capability), part.example.recipe.optim
    ranks, which = np.unique(part.ranks, return_inverse=True)
    persistent = [persistent_of(setup, optim, int(rank) or None) for rank in ranks]
    form = compile_form(setup)
    values = Values(part.example, {B: part.batch_sizes, S: part.seq_lens, R: part.ranks})
    factors = np.stack(np.broadcast_arrays(*(values[monomial] for monomial in form.monomials)))
    peaks = np.zeros(part.places.size)
    for of_phase in form.phases:
        stays = np.array([sum(bytes_[of_phase.phase].values()) for bytes_ in persistent], np.float64)
        totals = (np.array(of_phase.coefficients, np.float64) @ factors).max(axis=0) + stays[which]
        np.maximum(peaks, totals, out=peaks)
    if peaks.max() >= LARGEST_EXACT:
        raise UserError(f"a recipe takes {peaks.max() / 2**50:.0f} PiB: the arrays must stay below 8 PiB")
    return peaks.astype(np.int64)
