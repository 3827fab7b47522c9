"""Write files atomically."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PREFIX, SUFFIX = ".lorabench-", ".tmp"
"""Prefix and suffix of unfinished files."""


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically, with the permissions of the umask. Create its folder if needed.

    Raises:
        OSError: it cannot be written, or the disk is full; an existing file stays.
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
    """Remove unfinished files of killed processes in ``folder``. Nobody may be writing there."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """Return the umask. It can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
