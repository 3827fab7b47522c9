"""Read files that the user names. A pipe or a device could block for ever or never end, so both are refused."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from lorabench.estimator.errors import UserError
from lorabench.estimator.quantities import MIB


def open_input(path: Path) -> BufferedReader:
    """Open the regular file at ``path``.

    Raises:
        OSError: it cannot be opened, or is a folder.
        UserError: it is not a regular file.
    """
    _require_regular(path, path.stat())
    # Some regular files of /proc block too, such as kmsg. Without blocking they raise an error.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _require_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: a pipe or a device, not a file: write its content to a file and name that")


def read_input(path: Path, what: str, largest_bytes: int) -> bytes:
    """Return the content of the regular file at ``path``. ``what``: what it should be, such as "a suite".

    Raises:
        OSError: it cannot be read, or is a folder.
        UserError: it is not a regular file, or has more than ``largest_bytes``, a whole number of KiB.
    """
    with open_input(path) as file:
        raw: bytes | None = file.read(largest_bytes + 1)
    if raw is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
    if len(raw) > largest_bytes:
        size = f"{largest_bytes // MIB} MiB" if largest_bytes >= MIB else f"{largest_bytes // 1024} KiB"
        raise UserError(f"{path}: not {what}: larger than {size}")
    return raw


def decode_json(raw: bytes) -> Any:
    """Return the value of ``raw``, which is JSON in UTF-8.

    Raises:
        ValueError: it is not. The message is a short reason.
    """
    try:
        return msgspec.json.decode(raw)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error) if _is_utf8(raw) else "not UTF-8 text") from error


def decode_config(raw: bytes) -> Any:
    """Return the value of ``raw`` like `decode_json`, also with Infinity and NaN, which Python writes.

    They become ``{"__float__": "Infinity"}`` and the like, as transformers itself writes them.

    Raises:
        ValueError: it is not JSON. The message is a short reason.
    """
    try:
        return decode_json(raw)
    except ValueError:
        if not re.search(rb"\b(Infinity|NaN)\b", raw):
            raise
    try:
        return json.loads(raw, parse_constant=lambda name: {"__float__": name})
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
