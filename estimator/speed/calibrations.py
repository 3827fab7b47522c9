"""Files of rates that `lorabench calibrate` measured: one JSON file per device.

A file is found by the device's name, first in the user's folder, then among the files that lorabench ships.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct, field

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.devices.device import known_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.input_files import decode_json, read_input
from lorabench.estimator.speed.operations import Kernel
from lorabench.estimator.typed_values import convert

SHIPPED = Path(__file__).parent / "calibrations"
LARGEST_FILE_BYTES = 2**20
"""A calibration has about 10 kB."""
Seconds = Annotated[float, Meta(ge=1e-12, le=1e9)]
Rate = Annotated[float, Meta(ge=1, le=1e18)]
Extent = Annotated[int, Meta(ge=1, le=2**50)]
"""The bounds are far from any device's, and keep products and ratios within floats."""


class MatmulTimes(Struct, frozen=True, kw_only=True):
    """Seconds of matmuls (m × k) · (k × n), on a grid."""

    m: tuple[Extent, ...]
    n: tuple[Extent, ...]
    k: tuple[Extent, ...]
    """Each of the three in rising order."""
    seconds: tuple[Seconds, ...]
    """One for each point of the grid; k varies fastest and m slowest."""

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            extents = getattr(self, name)
            if len(extents) < 2 or list(extents) != sorted(set(extents)):
                raise ValueError(f"{name} must be two or more rising numbers")
        if len(self.seconds) != len(self.m) * len(self.n) * len(self.k):
            raise ValueError("there must be one number of seconds for each point of the grid")


class MemoryBoundTimes(Struct, frozen=True, kw_only=True):
    """Seconds of memory-bound operations, by their bytes read and written."""

    bytes: tuple[Extent, ...]
    """In rising order."""
    seconds: tuple[Seconds, ...]

    def __post_init__(self) -> None:
        if len(self.bytes) < 2 or list(self.bytes) != sorted(set(self.bytes)) or len(self.bytes) != len(self.seconds):
            raise ValueError("bytes must be two or more rising numbers, with as many seconds")


class AttentionRates(Struct, frozen=True, kw_only=True):
    """Floating-point operations per second of fused attention, counted for the pairs of positions that it computes."""

    forward: Rate
    backward: Rate
    masked_forward: Rate
    masked_backward: Rate


class Calibration(Struct, frozen=True, kw_only=True):
    """The measurements of one device."""

    schema_version: Literal[2] = 2
    device: str
    """The driver's name for it; for a CPU the operating system's."""
    backend: Backend = field(name="kind")
    """JSON names it ``kind``, as in the files that users have."""
    threads: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    """Threads of PyTorch, for a CPU."""
    software: dict[str, str]
    """Package → version."""
    date: str
    matmuls: dict[str, MatmulTimes]
    """By dtype."""
    memory_bound: dict[Kernel, MemoryBoundTimes]
    """By kernel: all of `Kernel`."""
    attention: dict[str, AttentionRates]
    """By dtype."""
    dequantisation: MemoryBoundTimes | None = None
    """Of bitsandbytes; None if it was not installed."""
    forward_seconds: Seconds
    """The host's seconds per operation of a forward pass, in a model so small that launches dominate."""
    backward_seconds: Seconds
    """The same for a backward pass."""
    optimizer_seconds: Seconds
    """The host's seconds per tensor of the optimizer's step."""

    def __post_init__(self) -> None:
        missing = [kernel for kernel in get_args(Kernel) if kernel not in self.memory_bound]
        if missing:
            raise ValueError(f"memory_bound lacks {', '.join(missing)}")


RENAMED = {"products": "matmuls", "passes": "memory_bound"}
"""Field of schema 1 → its name in schema 2."""


def decode_calibration(content: Any) -> Calibration:
    """Return the calibration in the decoded JSON ``content``, of schema 1 or 2.

    Raises:
        UserError: ``content`` is not a calibration.
    """
    if isinstance(content, dict) and content.get("schema_version") == 1:
        content = {RENAMED.get(name, name): value for name, value in content.items()} | {"schema_version": 2}
    return convert(content, Calibration)


def read_calibration(path: Path) -> Calibration:
    """Return the calibration in the file at ``path``.

    Raises:
        UserError: the file cannot be read, or is not a calibration.
    """
    try:
        raw = read_input(path, "a calibration", LARGEST_FILE_BYTES)
    except OSError as error:
        raise UserError(
            f"calibration {path}: cannot be read ({error.strerror}): make one with `lorabench calibrate`"
        ) from error
    try:
        return decode_calibration(decode_json(raw))
    except (ValueError, UserError) as error:
        raise UserError(f"calibration {path}: {error}: make a new one with `lorabench calibrate -o {path}`") from error


def find_calibration(device_name: str) -> Calibration | None:
    """Return the calibration of a device by its name (the catalogue's or the driver's); None if there is none.

    Raises:
        UserError: the device's file is not a calibration.
    """
    folders = [SHIPPED]
    with suppress(UserError):  # there is no home folder
        folders.insert(0, user_folder())
    for folder in folders:
        path = folder / file_name(device_name)
        with suppress(PermissionError):  # the home folder belongs to another user
            if path.is_file():
                return read_calibration(path)
    return None


def file_name(device_name: str) -> str:
    """Return the name of a device's file: from its catalogue name if it has one, else from its own name."""
    known = known_device(device_name)
    name = known.name if known else re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return f"{name or 'unknown'}.json"


def user_folder() -> Path:
    """Return the folder of the user's calibrations, in the usual place of the operating system.

    Raises:
        UserError: there is no home folder.
    """
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError as error:
        raise UserError("there is no home folder for the calibration: set HOME, or name a file with -o") from error
    return base / "lorabench" / "calibrations"
