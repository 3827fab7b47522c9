"""A folder of run records while a suite writes into it: one runner at a time, and no record is lost."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorabench.bench.records.atomic_writes import remove_unfinished_files, require_writable
from lorabench.bench.records.record import SUFFIX, BrokenRecordError, Key, RunRecord, read_record, write_record
from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import quoted

SET_ASIDE = ".broken"
"""Suffix for a file that is named like a record, but is not one."""


class Results:
    """The records of one suite in a folder."""

    def __init__(self, folder: Path, suite_name: str) -> None:
        """Read the existing records, then rename broken ones.

        Raises:
            UserError: a record is of another suite or a newer schema, or cannot be read or renamed.
        """
        self.folder = folder
        self.records: dict[Key, RunRecord] = {}
        self.notices: list[str] = []
        """One line per broken record, with its new name."""
        self._paths: dict[Key, Path] = {}
        broken: list[Path] = []
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                record = read_record(path)
            except BrokenRecordError:
                broken.append(path)
                continue
            if record.suite != suite_name:
                raise UserError(
                    f"{folder}: has records of the suite {quoted(record.suite)}, not {quoted(suite_name)}: "
                    "name another folder with -o"
                )
            self.records[record.key] = record
            self._paths[record.key] = path
        for path in broken:
            aside = _set_aside(path)
            self.notices.append(f"{path}: broken record, renamed to {aside.name}")

    def write(self, record: RunRecord) -> None:
        """Write ``record``, and replace an existing one with the same key.

        Raises:
            UserError: it cannot be written, or the disk is full; the existing record stays.
        """
        path = write_record(self.folder, record)
        before = self._paths.get(record.key, path)
        if before != path:  # a version with other recipe options used another name
            before.unlink(missing_ok=True)
        self.records[record.key] = record
        self._paths[record.key] = path


@contextmanager
def open_results(folder: Path, suite_name: str) -> Iterator[Results]:
    """Create the folder, lock it against other runners, and yield its records.

    Raises:
        UserError: the folder cannot be created or written, another run is writing there, or `Results` refuses a record.
    """
    try:
        require_writable(folder)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileExistsError as error:
        raise UserError(f"{folder}: is a file: name another folder with -o") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}: name another folder with -o") from error
    try:
        _lock(handle, folder)
        remove_unfinished_files(folder)
        yield Results(folder, suite_name)
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Run on file systems without locks too.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f"{folder}: another lorabench run is writing there: wait for it, or name another folder with -o"
            ) from error


def _set_aside(path: Path) -> Path:
    """Rename a broken record to an unused name, and return its new path."""
    names = (f"{path.name}{SET_ASIDE}{number}" for number in ("", *range(2, 10**6)))
    aside = next(aside for aside in map(path.with_name, names) if not aside.exists())
    try:
        return path.rename(aside)
    except OSError as error:
        raise UserError(f"{path}: not a run record, and cannot be renamed: {error.strerror}: remove it") from error
