"""`lorabench calibrate`: measure the speed of this machine's device, for sharper estimates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorabench.cli.listing import Column, as_table, folded
from lorabench.cli.output import show
from lorabench.cli.parameters import NamedPath, OneOf
from lorabench.cli.tracing import progress
from lorabench.cli.verbosity import verbose_option
from lorabench.estimator.errors import UserError

if TYPE_CHECKING:
    from lorabench.estimator.speed.calibrations import Calibration

EXAMPLES = """\
\b
Examples:
  lorabench calibrate
  lorabench calibrate --dtype bfloat16 --dtype float32 -o my-gpu.json
  lorabench estimate llama-3.1-8b --gpu rtx-4090 --calibration my-gpu.json
"""
DTYPES = ("float32", "bfloat16", "float16")
TERA, GIGA, MICRO = 1e12, 1e9, 1e-6


@click.command("calibrate", epilog=EXAMPLES)
@click.option("-o", "--output", type=NamedPath(), help="Write to this file. [where `estimate` looks for it]")
@click.option(
    "--device",
    type=OneOf(["auto", "cpu", "cuda"]),
    default="auto",
    help="Measure this device. [auto: a GPU, or else the CPU]",
)
@click.option(
    "--dtype",
    "dtypes",
    type=OneOf(DTYPES),
    multiple=True,
    help="Dtype of the matmuls. Repeatable. [GPU: bfloat16, float32; CPU: float32]",
)
@verbose_option
def command(output: Path | None, device: Any, dtypes: tuple[str, ...]) -> None:
    """Measure the speed of this machine's GPU or CPU, in about a minute.

    Measure matmuls by shape, elementwise operations, attention, dequantisation of 4-bit weights, and launch overhead.
    Later estimates for this device use the result; they find it by the device's name. Make sure that nothing else uses
    the device.
    """
    import msgspec

    from lorabench.bench.machine.calibrate import calibrate
    from lorabench.bench.machine.environment import probe_surroundings
    from lorabench.bench.records.atomic_writes import write_atomically
    from lorabench.estimator.speed.calibrations import file_name, user_folder

    if output is not None:
        _refuse_unwritable(output)
    surroundings = probe_surroundings(device)
    facts = surroundings.device
    chosen = tuple(dict.fromkeys(dtypes)) or (("float32",) if facts.backend == "cpu" else default_dtypes(facts.name))
    path = output or user_folder() / file_name(facts.name)
    if output is None and not surroundings.null_gpu:
        _refuse_unwritable(path)

    with progress() as say:
        calibration = calibrate(facts.backend, facts.name, chosen, lambda what: say(f"measuring {what}"))
    if surroundings.null_gpu:
        said = f"rehearsed on {facts.name}: every measurement ran, but a null GPU has no speed: nothing was written"
        show("\n".join(folded(said)))
        return
    show(as_text(calibration))
    with _writing(path):
        write_atomically(path, msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n")
    show(f"\nwrote {path}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Refuse ``path`` if writing it fails."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror}): name another file with -o") from error


def _refuse_unwritable(path: Path) -> None:
    """Refuse ``path`` now if it cannot be written, since the measurement takes a minute."""
    from lorabench.bench.records.atomic_writes import require_writable

    if path.exists() and not path.is_file():  # root would replace /dev/null by the file
        raise UserError(f"{path}: cannot write: not a file: name a file with -o")
    with _writing(path):
        require_writable(path.parent)


def default_dtypes(gpu: str) -> tuple[str, ...]:
    """Return the usual training dtypes of a GPU: the 16-bit dtype that it supports, and float32."""
    from lorabench.estimator.devices.device import known_device

    device = known_device(gpu)
    return "float16" if device and device.supports_bfloat16 is False else "bfloat16", "float32"


def as_text(calibration: Calibration) -> str:
    """Return the measured rates as a table."""
    rows: list[tuple[str, str]] = []
    for dtype, times in calibration.matmuls.items():
        sizes = [m * n * k for m in times.m for n in times.n for k in times.k]
        best = max(2 * size / seconds for size, seconds in zip(sizes, times.seconds, strict=True))
        rows.append((f"matmul, {dtype}", f"up to {_flops(best)}"))
        rates = calibration.attention[dtype]
        rows.append((f"attention, {dtype}", f"{_flops(rates.forward)}, backward {_flops(rates.backward)}"))
    for kernel, timed in calibration.memory_bound.items():
        rows.append((f"elementwise, {kernel}", _largest(timed.bytes, timed.seconds)))
    if calibration.dequantisation is not None:
        written = calibration.dequantisation
        rows.append(("dequantisation", _largest(written.bytes, written.seconds)))
    host = (calibration.forward_seconds, calibration.backward_seconds, calibration.optimizer_seconds)
    forward, backward, optimizer = (f"{seconds / MICRO:.3g}" for seconds in host)
    rows.append(("launch overhead", f"{forward} µs forward, {backward} µs backward"))
    rows.append(("optimizer step", f"{optimizer} µs per tensor"))
    threads = calibration.threads
    on_threads = "" if threads is None else f", {threads} thread{'s' if threads > 1 else ''}"
    return as_table(
        [
            Column(f"{calibration.device}{on_threads}", [what for what, _ in rows], right=False),
            Column("", [rate for _, rate in rows], right=False),
        ]
    )


def _flops(rate: float) -> str:
    return f"{rate / TERA:.3g} TFLOP/s" if rate >= TERA else f"{rate / GIGA:.3g} GFLOP/s"


def _largest(bytes_: tuple[int, ...], seconds: tuple[float, ...]) -> str:
    rates = [size / second / GIGA for size, second in zip(bytes_, seconds, strict=True)]
    return f"{rates[-1]:.3g} GB/s, {max(rates):.3g} GB/s in cache"
