"""Device memory of a weight that bitsandbytes stores in 4 bits, to the byte.

From bitsandbytes 0.50 (`functional.quantize_4bit`). The tests compare it with real allocations.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK = 64
"""Weights that share one absmax (the default of `Linear4bit`)."""
NESTED_BLOCK = 256
"""Absmax values that share one nested absmax under double quantisation."""
CODEBOOK_BYTES = 16 * 4
NESTED_CODEBOOK_BYTES = 256 * 4
OFFSET_BYTES = 4


class QuantizedBytes(NamedTuple):
    """Bytes of one quantised weight, by tensor."""

    codes: int
    """4 bits per weight, packed in uint8."""
    absmax: int
    """One per block of 64 weights: uint8 under double quantisation, float32 otherwise."""
    nested_absmax: int
    """One float32 per 256 absmax values; 0 without double quantisation."""
    tables: int
    """The 16-entry codebook; with double quantisation also the 256-entry nested codebook and the offset."""

    @property
    def table_blocks(self) -> tuple[int, ...]:
        """Bytes of each table: the codebook, then the offset and the nested codebook under double quantisation."""
        nested = (OFFSET_BYTES, NESTED_CODEBOOK_BYTES) if self.nested_absmax else ()
        return CODEBOOK_BYTES, *nested

    @property
    def total(self) -> int:
        """Sum of all four."""
        return sum(self)


def quantized_bytes(elements: int, *, double_quant: bool) -> QuantizedBytes:
    """Return the bytes of a weight of ``elements`` elements in NF4 or FP4: both have the same size.

    Per weight this is 0.5 B + 8/64 bit + 32/(64·256) bit = 0.5 B + 0.127 bit with double quantisation, and 0.5 B +
    32/64 bit = 0.5625 B without, plus the tables of each tensor.
    """
    blocks = -(-elements // BLOCK)
    if not double_quant:
        return QuantizedBytes(codes=-(-elements // 2), absmax=4 * blocks, nested_absmax=0, tables=CODEBOOK_BYTES)
    return QuantizedBytes(
        codes=-(-elements // 2),
        absmax=blocks,
        nested_absmax=4 * -(-blocks // NESTED_BLOCK),
        tables=CODEBOOK_BYTES + NESTED_CODEBOOK_BYTES + OFFSET_BYTES,
    )
