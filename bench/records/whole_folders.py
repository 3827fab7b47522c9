"""Replace folders atomically."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lorabench.bench.records.whole_files import PREFIX, umask

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP)


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a new folder, which then atomically replaces ``folder``.

    A reader sees the old or the new content, never a mixture. If ``fill`` fails or is killed, the old folder stays. (On
    a file system without renameat2's exchange, such as NFS, ``folder`` is missing for an instant.)

    Raises:
        OSError: it cannot be written, or the disk is full; the old folder stays.
    """
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target.parent))
    try:
        fill(new)
        if target.exists():
            shutil.copystat(target, new)
            _exchange(new, target)
        else:
            new.chmod(0o777 & ~umask())
            new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _CANNOT_EXCHANGE:
            raise OSError(code, os.strerror(code), str(other))
    aside = Path(tempfile.mkdtemp(prefix=PREFIX, dir=other.parent))
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)
