"""Buffers of CUDA's reductions: the memory in which blocks of threads leave what they have summed so far.

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
MOST_TOGETHER = 4
"""Most outputs of one thread, which it reads at once (`get_output_vec_size`)."""
ACCUMULATOR_BYTES = 4
"""16-bit and 32-bit inputs are summed in float32."""
LEAST_INPUTS_PER_THREAD, MOST_INPUTS_PER_THREAD = 16, 256
MOST_BYTES = 2**31
"""A larger tensor is summed in halves, one after the other: `can_use_32bit_indexing` needs each element to begin within
31 bits."""


class Multiprocessors(NamedTuple):
    """What decides how a GPU divides a sum."""

    number: int
    """Of the whole GPU."""
    threads: int
    """Most that one of them runs at a time."""


def multiprocessors_of(compute_capability: str | None, number: int | None) -> Multiprocessors | None:
    """Return the multiprocessors of a GPU (of `Device`); None if its ``compute_capability`` or number is not known."""
    limits = MULTIPROCESSORS.get(compute_capability or "")
    return None if limits is None or number is None else Multiprocessors(number, limits.threads)


def reduction_buffer(rows: int, outputs: int, itemsize: int, gpu: Multiprocessors) -> int:
    """Return the bytes of the buffer with which ``rows`` of ``outputs`` elements are summed to one row; 0 for none."""
    while rows * outputs * itemsize > MOST_BYTES:
        rows -= rows // 2
    together = MOST_TOGETHER
    while outputs % together:
        together //= 2
    most_threads = MOST_THREADS // together
    width, height = (min(_power_of_two_in(number), most_threads) for number in (outputs // together, rows))
    block_width = min(width, WARP)
    block_height = min(height, most_threads // block_width)
    block_width = min(width, most_threads // block_height)
    if rows < min(16 * block_height, MOST_INPUTS_PER_THREAD):
        return 0
    inputs_per_thread = -(-rows // block_height)
    blocks = -(-(outputs // together) // block_width)
    room = gpu.number * (gpu.threads // (block_width * block_height))
    if inputs_per_thread < MOST_INPUTS_PER_THREAD or blocks > room:
        return 0
    shares = max(
        min(-(-room // blocks), -(-inputs_per_thread // LEAST_INPUTS_PER_THREAD)),
        -(-inputs_per_thread // MOST_INPUTS_PER_THREAD),
    )
    return ACCUMULATOR_BYTES * outputs * shares * block_width * together if shares > 1 else 0


def _power_of_two_in(number: int) -> int:
    return 1 << (number.bit_length() - 1)
