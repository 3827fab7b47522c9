"""The limits of one streaming multiprocessor, by compute capability."""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.errors import UserError

KIB = 1024


class Multiprocessor(NamedTuple):
    """The resident threads and blocks of one multiprocessor, and its shared memory."""

    threads: int
    blocks: int
    shared_bytes: int
    """Maximum over all its blocks together."""
    shared_bytes_per_block: int
    """Maximum for one block."""


MULTIPROCESSORS = {
    "7.0": Multiprocessor(2048, 32, 96 * KIB, 96 * KIB),
    "7.5": Multiprocessor(1024, 16, 64 * KIB, 64 * KIB),
    "8.0": Multiprocessor(2048, 32, 164 * KIB, 163 * KIB),
    "8.6": Multiprocessor(1536, 16, 100 * KIB, 99 * KIB),
    "8.9": Multiprocessor(1536, 24, 100 * KIB, 99 * KIB),
    "9.0": Multiprocessor(2048, 32, 228 * KIB, 227 * KIB),
    "10.0": Multiprocessor(2048, 32, 228 * KIB, 227 * KIB),
    "10.3": Multiprocessor(2048, 32, 228 * KIB, 227 * KIB),
    "12.0": Multiprocessor(1536, 24, 100 * KIB, 99 * KIB),
}
"""Source: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"; for blocks also
cudaOccMaxBlocksPerMultiprocessor of the toolkit's cuda_occupancy.h."""


def multiprocessor(compute_capability: str) -> Multiprocessor:
    """Return the limits of a multiprocessor. ``compute_capability``: as in `Device`.

    Raises:
        UserError: it is not an NVIDIA compute capability, or an unknown one.
    """
    found = MULTIPROCESSORS.get(compute_capability)
    if found is None:
        raise UserError(
            f"the limits of a multiprocessor of {compute_capability} are not known, only those of compute capability "
            f"{', '.join(MULTIPROCESSORS)}"
        )
    return found
