"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, replacing what is there, readable by whom the umask lets read.

    Its folder is made where it is missing.

    Raises:
        OSError: it cannot be written, or the disk is full; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
        scratch = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            scratch.chmod(0o666 & ~_umask())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def _umask() -> int:
    """Return the umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
