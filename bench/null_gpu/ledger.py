"""The null GPU's ledger: how much each process has taken of each card at this moment (``cpp/ledger.cpp``)."""

from __future__ import annotations

import struct
from pathlib import Path

FILE_NAME = "ledger"
ENTRY = struct.Struct("@iiN")
"""Process id (0: no entry), card, bytes."""


def taken_bytes(notes: Path) -> int:
    """Return the bytes that all processes of a rehearsal have taken of all cards by now.

    Args:
        notes: folder of notes of the rehearsal.
    """
    path = notes / FILE_NAME
    if not path.exists():
        return 0
    table = path.read_bytes()
    whole = table[: len(table) // ENTRY.size * ENTRY.size]
    return sum(taken for process, _, taken in ENTRY.iter_unpack(whole) if process)
