"""The null GPU's ledger: the memory of each card that each process uses now (``cpp/ledger.cpp``)."""

from __future__ import annotations

import struct
from pathlib import Path

FILE_NAME = "ledger"
ENTRY = struct.Struct("@iiN")
"""Process id (0: no entry), card, bytes."""


def taken_bytes(notes: Path) -> int:
    """Return the bytes that all processes of a rehearsal now use on all cards.

    Args:
        notes: the rehearsal's folder of notes.
    """
    path = notes / FILE_NAME
    if not path.exists():
        return 0
    table = path.read_bytes()
    whole = table[: len(table) // ENTRY.size * ENTRY.size]
    return sum(taken for process, _, taken in ENTRY.iter_unpack(whole) if process)
