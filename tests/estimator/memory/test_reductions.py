"""Buffers of reductions: what rehearsals of torch's own kernels saw allocated."""

from __future__ import annotations

import pytest

from lorabench.estimator.memory.reductions import Multiprocessors, reduction_buffer

H100 = Multiprocessors(132, 2048)


@pytest.mark.parametrize(
    ("rows", "outputs", "itemsize", "bytes_"),
    [
        # Gradients of biases of Pythia 2.8B at 2048 tokens: of dense, dense_h_to_4h and query_key_value.
        (2048, 2560, 2, 41_943_040),
        (2048, 10240, 2, 141_557_760),
        (2048, 7680, 2, 125_829_120),
        # The gradient of a norm's weight of Phi-3-mini at 8192 tokens.
        (8192, 3072, 4, 138_412_032),
        # Threads sum up few rows alone.
        (256, 2560, 2, 0),
        (2048, 10_000_000, 2, 0),
    ],
)
def test_the_buffer_is_that_of_torchs_kernel(rows: int, outputs: int, itemsize: int, bytes_: int) -> None:
    assert reduction_buffer(rows, outputs, itemsize, H100) == bytes_


def test_a_tensor_beyond_32_bit_indices_is_summed_in_halves() -> None:
    assert reduction_buffer(2**19, 4096, 2, H100) == reduction_buffer(2**18, 4096, 2, H100)
