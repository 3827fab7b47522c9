"""Resident memory of this process, from Linux."""

from __future__ import annotations

from pathlib import Path

PROCESS = Path("/proc/self")
FORGET_PEAK = "5"
"""Value for `clear_refs` that resets the peak to the current size (proc_pid_clear_refs(5))."""


def forget_peak() -> bool:
    """Reset the peak of resident memory; return whether the kernel supports it."""
    try:
        (PROCESS / "clear_refs").write_text(FORGET_PEAK)
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Return peak resident bytes since `forget_peak` or the start of the process; None if Linux does not report it."""
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    kibibytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kibibytes is None else int(kibibytes) * 1024
