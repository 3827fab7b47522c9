"""The closed form of memory for arrays of batch sizes, lengths and ranks: `estimate_memory` in numpy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lorabench.estimator.closed_form.forms import PhaseForm, Setup, branches, form_of, persistent_of
from lorabench.estimator.closed_form.sizes import B, Monomial, R, S, Values
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import NoClosedForm, UserError
from lorabench.estimator.memory.breakdown import COMPONENTS
from lorabench.estimator.memory.reserved import PERSISTENT, AtPeak
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


class BeyondArraysError(UserError):
    """A recipe takes `LARGEST_EXACT` bytes or more."""


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
        peaks.flat[part.places] = peaks_of(part, backend, compute_capability)
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
    chunk = resolved.spec.scan_chunk
    scanned = 2 * -(-length // chunk) + (length % chunk != 0) if chunk else np.zeros_like(length)
    codes = 4 * scanned + 2 * several + filled
    for code in np.unique(codes):
        places = np.flatnonzero(codes == code)
        for start in range(0, places.size, CHUNK):
            some = places[start : start + CHUNK]
            example = resolved.replaced(batch_size=int(batch[some[0]]), seq_len=int(length[some[0]]))
            yield GridPart(some, example, batch[some].astype(np.float64), length[some].astype(np.float64), rank[some])


def parts_of(
    recipes: Sequence[ResolvedRecipe], backend: Backend, compute_capability: str | None = None
) -> tuple[list[GridPart], dict[int, NoClosedForm]]:
    """Return recipes of any kind in parts, and the place of each recipe that has no closed form, with the reason."""
    import numpy as np

    alike: dict[tuple[Setup, str, int], list[int]] = {}
    without: dict[int, NoClosedForm] = {}
    for place, resolved in enumerate(recipes):
        recipe = resolved.recipe
        try:
            setup = Setup(resolved, backend, compute_capability)
        except NoClosedForm as error:
            without[place] = error
        else:
            alike.setdefault((setup, recipe.optim, recipe.gradient_accumulation), []).append(place)
    parts = []
    for places in alike.values():
        for start in range(0, len(places), CHUNK):
            some = places[start : start + CHUNK]
            sizes = [recipes[place].recipe for place in some]
            parts.append(
                GridPart(
                    np.array(some),
                    recipes[some[0]],
                    np.array([recipe.batch_size for recipe in sizes], np.float64),
                    np.array([recipe.seq_len for recipe in sizes], np.float64),
                    np.array([recipe.rank or 0 for recipe in sizes]),
                )
            )
    return parts, without


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


def peaks_of(part: GridPart, backend: Backend, compute_capability: str | None) -> NDArray[np.int64]:
    """Return ``peak_allocated_bytes`` of each recipe of ``part``.

    Raises:
        UserError: as in `estimate_memory`.
        BeyondArraysError: a recipe needs 8 PiB or more.
    """
    import numpy as np

    peaks = np.zeros(part.places.size)
    for phase in _phases(part, backend, compute_capability):
        totals = (phase.coefficients(COMPONENTS) @ phase.factors).max(axis=0) + phase.stays(COMPONENTS)
        np.maximum(peaks, totals, out=peaks)
    return _exact(peaks)


def at_peaks_of(part: GridPart, backend: Backend, compute_capability: str | None) -> AtPeak:
    """Return what is allocated at the peak of each recipe of ``part``.

    Raises:
        UserError: as in `estimate_memory`.
        BeyondArraysError: a recipe needs 8 PiB or more.
    """
    import numpy as np

    peaks, working, workspaces = np.full((3, part.places.size), -1.0)
    for phase in _phases(part, backend, compute_capability):
        of_candidates = phase.coefficients(COMPONENTS) @ phase.factors
        candidate = of_candidates.argmax(axis=0)
        totals = of_candidates.max(axis=0) + phase.stays(COMPONENTS)
        higher = totals > peaks
        peaks[higher] = totals[higher]
        for names, bytes_ in ((WORKING, working), (("workspaces",), workspaces)):
            live = np.einsum("rm,mr->r", phase.coefficients(names)[candidate], phase.factors)
            bytes_[higher] = (live + phase.stays(names))[higher]
    return AtPeak(_exact(peaks), working.astype(np.int64), workspaces.astype(np.int64))


WORKING = tuple(name for name in COMPONENTS if name not in PERSISTENT)


class _Phase(NamedTuple):
    """One phase of a form, for the recipes of a part."""

    form: PhaseForm
    monomials: Sequence[Monomial]
    factors: NDArray[np.float64]
    """The values of the monomials, one row each, for each recipe."""
    persistent: list[dict[str, int]]
    """Component → persistent bytes, for each rank."""
    which: NDArray[np.int64]
    """Index of each recipe's rank."""

    def coefficients(self, components: Collection[str]) -> NDArray[np.float64]:
        """Return the bytes of some components, for each candidate and monomial."""
        import numpy as np

        if components is COMPONENTS:
            return np.array(self.form.coefficients, np.float64)
        column = {monomial: index for index, monomial in enumerate(self.monomials)}
        found = np.zeros((len(self.form.candidates), len(column)))
        for row, candidate in zip(found, self.form.candidates, strict=True):
            for (component, monomial), bytes_ in candidate.live.items():
                if bytes_ and component in components:
                    row[column[monomial]] += bytes_
        return found

    def stays(self, components: Collection[str]) -> NDArray[np.float64]:
        """Return the persistent bytes of some components, for each recipe."""
        import numpy as np

        of_ranks = [sum(bytes_.get(name, 0) for name in components) for bytes_ in self.persistent]
        return np.array(of_ranks, np.float64)[self.which]


def _phases(part: GridPart, backend: Backend, compute_capability: str | None) -> Iterator[_Phase]:
    import numpy as np

    setup, form = form_of(part.example, backend, compute_capability)
    optim = part.example.recipe.optim
    ranks, which = np.unique(part.ranks, return_inverse=True)
    persistent = [persistent_of(setup, optim, int(rank) or None) for rank in ranks]
    values = Values(part.example, {B: part.batch_sizes, S: part.seq_lens, R: part.ranks})
    factors = np.stack(np.broadcast_arrays(*(values[monomial] for monomial in form.monomials)))
    for of_phase in form.phases:
        stay = [bytes_[of_phase.phase] for bytes_ in persistent]
        yield _Phase(of_phase, form.monomials, factors, stay, which)


def _exact(peaks: NDArray[np.float64]) -> NDArray[np.int64]:
    import numpy as np

    if peaks.max() >= LARGEST_EXACT:
        raise BeyondArraysError(f"a recipe takes {peaks.max() / 2**50:.0f} PiB: the arrays must stay below 8 PiB")
    return peaks.astype(np.int64)
