"""Bytes in a form for people, always with their unit."""

from __future__ import annotations

GIB = 2**30
MIB = 2**20


def in_gib(bytes_: int) -> str:
    """Return bytes in GiB, or in MiB below one tenth of a GiB: 12.68 GiB, 34.5 MiB."""
    if abs(bytes_) < GIB / 10:
        return f"{bytes_ / MIB:.1f} MiB"
    return f"{bytes_ / GIB:,.2f} GiB"


def range_in_gib(low: int, high: int) -> str:
    """Return a range of bytes in the unit of its upper end: 12.99 to 16.31 GiB."""
    if abs(high) < GIB / 10:
        return f"{low / MIB:.1f} to {in_gib(high)}"
    return f"{low / GIB:,.2f} to {in_gib(high)}"


def short_gib(bytes_: int) -> str:
    """Return bytes in GiB with one decimal: 11.3 GiB."""
    return f"{bytes_ / GIB:,.1f} GiB"
