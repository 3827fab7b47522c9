"""Buffers of CUDA's reductions: scratch memory for the partial sums of thread blocks.

As read in torch 2.13 (`ATen/native/cuda/Reduce.cuh`, `setReduceConfig` and `global_memory_size`) for sums of rows, such
as the gradient of a bias: outputs lie side by side in memory, and the inputs of each lie a row apart. Sums of
neighbours, such as each token's mean over its features, are too short to be divided among blocks.
"""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.devices.multiprocessor import MULTIPROCESSORS

WARP = 32
MOST_THREADS = 512
"""Threads of a block (`MAX_NUM_THREADS`)."""
MOST_OUTPUTS_PER_THREAD = 4
"""Maximum of neighbouring outputs that one thread computes (`get_output_vec_size`)."""
ACCUMULATOR_BYTES = 4
"""16-bit and 32-bit inputs are summed in float32."""
LEAST_INPUTS_PER_THREAD, MOST_INPUTS_PER_THREAD = 16, 256
MOST_BYTES = 2**31
"""A larger tensor is summed in halves, one after the other: `can_use_32bit_indexing` needs each element to begin within
31 bits."""


class Multiprocessors(NamedTuple):
    """A GPU's multiprocessors, which determine how it divides a sum."""

    number: int
    """Multiprocessors of the whole GPU."""
    threads: int
    """Maximum that one multiprocessor runs at a time."""


def multiprocessors_of(compute_capability: str | None, number: int | None) -> Multiprocessors | None:
    """Return the multiprocessors of a GPU (of `Device`); None if its ``compute_capability`` or number is not known."""
    limits = MULTIPROCESSORS.get(compute_capability or "")
    return None if limits is None or number is None else Multiprocessors(number, limits.threads)


def reduction_buffer(rows: int, outputs: int, itemsize: int, gpu: Multiprocessors) -> int:
    """Return the bytes of the buffer for a sum of ``rows`` rows of ``outputs`` elements; 0 if it needs none."""
    while rows * outputs * itemsize > MOST_BYTES:
        rows -= rows // 2
    outputs_per_thread = MOST_OUTPUTS_PER_THREAD
    while outputs % outputs_per_thread:
        outputs_per_thread //= 2
    most_threads = MOST_THREADS // outputs_per_thread
    width, height = (min(_last_power_of_two(number), most_threads) for number in (outputs // outputs_per_thread, rows))
    block_width = min(width, WARP)
    block_height = min(height, most_threads // block_width)
    block_width = min(width, most_threads // block_height)
    if rows < min(16 * block_height, MOST_INPUTS_PER_THREAD):
        return 0
    inputs_per_thread = -(-rows // block_height)
    blocks = -(-(outputs // outputs_per_thread) // block_width)
    blocks_at_once = gpu.number * (gpu.threads // (block_width * block_height))
    if inputs_per_thread < MOST_INPUTS_PER_THREAD or blocks > blocks_at_once:
        return 0
    shares = max(
        min(-(-blocks_at_once // blocks), -(-inputs_per_thread // LEAST_INPUTS_PER_THREAD)),
        -(-inputs_per_thread // MOST_INPUTS_PER_THREAD),
    )
    return ACCUMULATOR_BYTES * outputs * shares * block_width * outputs_per_thread if shares > 1 else 0


def _last_power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1)
