"""The step of a model whose scans loop over many chunks, from its steps with few.

Each iteration in the middle of a loop does what the one before it does, and leaves as much. So the bytes at each moment
grow by the same amount with each chunk more. The moments are those of a step with few chunks: live bytes rise or fall
by the same amount from iteration to iteration, so a loop's peak is in its first iterations or in its last.
"""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.closed_form.ledger import Live, PeakCandidate
from lorabench.estimator.closed_form.sizes import Monomial, chunks_of_length
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.resolved import ResolvedRecipe

FEW_CHUNKS = 4
"""Chunks of a short step. A step with one more has an iteration in the middle that is like those beside it."""
LEFT_OUT = 1
"""That iteration: its moments are left out, so that both steps have the same ones."""
Run = Callable[[ResolvedRecipe, int | None], list[PeakCandidate]]
"""Runs a step; candidates of an iteration of each loop are left out if one is given."""


def example_length(spec: ModelSpec, seq_len: int, most_chunks: int | None = None) -> int:
    """Return the length that stands for all whose scans do the same as for ``seq_len``: with as many chunks, or
    ``most_chunks`` if there are more, the last of which is whole or not."""
    chunks = -(-seq_len // spec.scan_chunk)
    if most_chunks is not None:
        chunks = min(chunks, most_chunks)
    return chunks * spec.scan_chunk - (seq_len % spec.scan_chunk != 0)


def chunks_beyond_few(resolved: ResolvedRecipe) -> int:
    """Return by how many chunks the recipe's scans exceed `FEW_CHUNKS`."""
    chunk = resolved.spec.scan_chunk
    chunks = -(-resolved.recipe.seq_len // chunk) if chunk else 0
    return max(0, chunks - FEW_CHUNKS)


def candidates_of_scan(resolved: ResolvedRecipe, run: Run) -> list[PeakCandidate]:
    """Return the peak candidates of the step of ``resolved``, with any number of chunks more than `FEW_CHUNKS`."""
    spec, length = resolved.spec, resolved.recipe.seq_len
    if not chunks_beyond_few(resolved):
        return run(resolved, None)
    first, second = (
        run(resolved.replaced(seq_len=example_length(spec, length, chunks)), left_out)
        for chunks, left_out in ((FEW_CHUNKS, None), (FEW_CHUNKS + 1, LEFT_OUT))
    )
    more = chunks_of_length(spec.scan_chunk, -FEW_CHUNKS)
    return [_growing(one, other, more) for one, other in zip(first, second, strict=True)]


def _growing(few: PeakCandidate, one_more: PeakCandidate, more: Monomial) -> PeakCandidate:
    """Return a candidate for ``more`` chunks than those of ``few``."""
    assert few.phase == one_more.phase
    live: dict[tuple[str, Monomial], int] = dict(few.live)
    total: dict[Monomial, int] = dict(few.total)
    for (component, monomial), bytes_ in _differences(few.live, one_more.live).items():
        live[component, monomial * more] = live.get((component, monomial * more), 0) + bytes_
        total[monomial * more] = total.get(monomial * more, 0) + bytes_
    return PeakCandidate(few.phase, live, total)


def _differences(first: Live, second: Live) -> dict[tuple[str, Monomial], int]:
    differences = {slot: second.get(slot, 0) - first.get(slot, 0) for slot in first.keys() | second.keys()}
    return {slot: bytes_ for slot, bytes_ in differences.items() if bytes_}
