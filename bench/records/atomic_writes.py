"""Write files and replace folders atomically: a reader sees the old content or the new, never a mixture."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PREFIX, SUFFIX = ".lorabench-", ".tmp"
"""Prefix and suffix of unfinished files."""
ROOM = 2**16
"""Bytes that must be free before a measurement: more than a run record of a thousand steps."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP)


def write_atomically(path: Path, content: bytes) -> None:
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
            scratch.chmod(0o666 & ~_umask())
            scratch.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def require_writable(folder: Path) -> None:
    """Create ``folder`` if needed, and write a file of `ROOM` bytes there that is gone at once.

    Raises:
        OSError: that is not possible, such as on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * ROOM)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished_files(folder: Path) -> None:
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
            new.chmod(0o777 & ~_umask())
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


def _umask() -> int:
    """Return the umask. It can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
