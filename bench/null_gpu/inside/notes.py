"""Notes on guesses that a reader of the rehearsal should know, as lines of JSON in the folder of notes."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType

OWN = str(Path(__file__).parent)
INSIDE_LIBRARIES = ("/torch/", "/importlib/", "<frozen")
LORABENCH = str(Path(__file__).parents[3])
INSTALLED = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
"""Folders of installed code, which is not the program's own."""
_told: set[tuple[str, str]] = set()


def note(kind: str, operation: str) -> None:
    """Note that ``operation`` did what ``kind`` says, once for each place in the program.

    Kinds: ``branch`` and ``shape``, decided by a value that a kernel would have computed; ``balanced``, a choice among
    many that was spread evenly; ``not computed``, an operation on known values that the host cannot do.
    """
    _write(kind, operation, place())


def note_read(operation: str) -> None:
    """Note that the program itself, not a library, read a float that a kernel would have computed (``read``).

    Nothing can see what the program does with the number. Libraries read losses and norms to log them, which is not
    noted.
    """
    where = place()
    if not where.startswith((*INSTALLED, LORABENCH)):
        _write("read", operation, where)


def _write(kind: str, operation: str, where: str) -> None:
    folder = os.environ.get("NULL_GPU_NOTES")
    if not folder or (kind, where) in _told:
        return
    _told.add((kind, where))
    line = json.dumps({"kind": kind, "operation": operation, "where": where})
    with (Path(folder) / "noticed").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def place() -> str:
    """Return the innermost line outside torch and lorabench that is running: file, line and function.

    Code that `exec` made has no file. Its place begins with the file of the module that it belongs to.
    """
    frame = sys._getframe(1)
    innermost = None
    while frame is not None:
        name = _file(frame)
        if not name.startswith(OWN):
            text = f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
            innermost = innermost or text
            if not any(each in name for each in INSIDE_LIBRARIES):
                return text
        if frame.f_back is None:
            break
        frame = frame.f_back
    return innermost or "unknown"


def _file(frame: FrameType) -> str:
    name = frame.f_code.co_filename
    module = frame.f_globals.get("__file__")
    return f"{module}, {name}" if module and name.startswith("<") else name
