"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PREFIX, SUFFIX = ".lorabench-", ".tmp"
"""Of the names of files that are not whole yet."""


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, replacing what is there, readable by whom the umask lets read.

    Its folder is made where it is missing.

    Raises:
        OSError: it cannot be written, or the disk is full; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=PREFIX, suffix=SUFFIX, delete=False) as file:
        scratch = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            scratch.chmod(0o666 & ~umask())
            scratch.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def remove_scratch_files(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in ``folder``; nobody may be writing there."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the new name survive a power failure too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """Return the umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
