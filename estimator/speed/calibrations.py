"""Files of rates that `lorabench calibrate` measured: one JSON file for each device.

They are looked for by the device's name, among the user's own first, then among those that lorabench ships.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.devices.device import known_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.speed.operations import Kernel
from lorabench.estimator.typed_values import convert

SHIPPED = Path(__file__).parent / "calibrations"
Seconds = Annotated[float, Meta(gt=0)]
Extent = Annotated[int, Meta(ge=1)]


class MatmulTimes(Struct, frozen=True, kw_only=True):
    """Seconds of matmuls of (m × k) and (k × n) matrices, on a grid."""

    m: tuple[Extent, ...]
    n: tuple[Extent, ...]
    k: tuple[Extent, ...]
    """Each in rising order."""
    seconds: tuple[Seconds, ...]
    """Of each point of the grid; k varies fastest and m slowest."""

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            extents = getattr(self, name)
            if len(extents) < 2 or list(extents) != sorted(set(extents)):
                raise ValueError(f"{name} must be two or more rising numbers")
        if len(self.seconds) != len(self.m) * len(self.n) * len(self.k):
            raise ValueError("seconds must be as many as the grid has points")


class MemoryBoundTimes(Struct, frozen=True, kw_only=True):
    """Seconds of memory-bound operations, by the bytes that they read and write."""

    bytes: tuple[Extent, ...]
    """In rising order."""
    seconds: tuple[Seconds, ...]

    def __post_init__(self) -> None:
        if len(self.bytes) < 2 or list(self.bytes) != sorted(set(self.bytes)) or len(self.bytes) != len(self.seconds):
            raise ValueError("bytes must be two or more rising numbers, with as many seconds")


class AttentionRates(Struct, frozen=True, kw_only=True):
    """Floating-point operations a second of attention in one kernel, on work pairs as the kernel counts them."""

    forward: Seconds
    backward: Seconds
    masked_forward: Seconds
    masked_backward: Seconds


class Calibration(Struct, frozen=True, kw_only=True):
    """What was measured on one device."""

    schema_version: Literal[2] = 2
    device: str
    """As the driver names it; of a CPU, as the operating system does."""
    kind: Backend
    threads: int | None = None
    """That PyTorch used (CPU)."""
    software: dict[str, str]
    """Package → version."""
    date: str
    matmuls: dict[str, MatmulTimes]
    """By dtype."""
    memory_bound: dict[Kernel, MemoryBoundTimes]
    """Of every kind of elementwise kernel."""
    attention: dict[str, AttentionRates]
    """By dtype."""
    dequantisation: MemoryBoundTimes | None = None
    """By bitsandbytes; None where it is not installed."""
    forward_seconds: Seconds
    """That an operation of a forward pass takes of the processor, in a model so small that little else takes time."""
    backward_seconds: Seconds
    """The same of a backward pass."""
    optimizer_seconds: Seconds
    """The same of the optimizer's step, for each tensor."""

    def __post_init__(self) -> None:
        missing = [kernel for kernel in get_args(Kernel) if kernel not in self.memory_bound]
        if missing:
            raise ValueError(f"memory_bound lacks {', '.join(missing)}")


RENAMED = {"products": "matmuls", "passes": "memory_bound"}
"""Field of schema 1 → its name in schema 2."""


def decode_calibration(content: Any) -> Calibration:
    """Return the calibration that a JSON file of schema 1 or 2 contains.

    Raises:
        UserError: it is not a calibration.
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
        return decode_calibration(msgspec.json.decode(path.read_bytes()))
    except OSError as error:
        raise UserError(
            f"calibration {path}: cannot be read ({error.strerror}): make one with `lorabench calibrate`"
        ) from error
    except (msgspec.DecodeError, UserError) as error:
        raise UserError(f"calibration {path}: {error}: make a new one with `lorabench calibrate -o {path}`") from error


def find_calibration(device_name: str) -> Calibration | None:
    """Return the calibration of the device of that name (a catalogue's or a driver's), None where there is none.

    Raises:
        UserError: a file that bears the name is no calibration.
    """
    folders = [SHIPPED]
    with suppress(UserError):  # no home folder is known
        folders.insert(0, user_folder())
    for folder in folders:
        path = folder / file_name(device_name)
        with suppress(PermissionError):  # a home folder that is another user's
            if path.is_file():
                return read_calibration(path)
    return None


def file_name(device_name: str) -> str:
    """Return the name of the file for a device: its catalogue name where it has one, else its own in plain letters."""
    known = known_device(device_name)
    name = known.name if known else re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return f"{name or 'unknown'}.json"


def user_folder() -> Path:
    """Return where the user's own calibrations are kept, by the custom of the operating system.

    Raises:
        UserError: no home folder is known.
    """
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError as error:
        raise UserError(
            "no home folder is known to keep the calibration in: set HOME, or name a file with -o"
        ) from error
    return base / "lorabench" / "calibrations"
