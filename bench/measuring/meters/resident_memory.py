"""What this process has in RAM, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

PROCESS = Path("/proc/self")
FORGET_PEAK = "5"
"""What `clear_refs` takes to set the peak back to the present (proc_pid_clear_refs(5))."""


def forget_peak() -> bool:
    """Let the peak of resident memory begin anew; tell whether the kernel does so."""
    try:
        (PROCESS / "clear_refs").write_text(FORGET_PEAK)
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Return the most bytes in RAM since `forget_peak`, or since the process began; None where Linux does not say."""
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    kibibytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kibibytes is None else int(kibibytes) * 1024
