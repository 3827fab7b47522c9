"""How far the estimate and the trace are off: rehearsals of 148 recipes of real size on five GPUs.

Run with `python benchmarks/rehearsal_errors.py DIR` in an environment with a CUDA build of torch, such as
`make .venv-cuda/.installed` makes, with liger-kernel added. Each suite in `benchmarks/rehearsals/` is rehearsed on the
GPU that its file is named after, into a folder of DIR; records that are there are kept. Then every recipe is estimated
and traced, and the table goes into docs/accuracy.md, between its marks. Copies of the records, without predictions, go
into `tests/estimator/rehearsed/`. A rehearsal takes some 10 to 30 s, a trace some 5 s.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from lorabench.bench.records.labels import distinct_labels
from lorabench.bench.records.record import RunRecord, read_records
from lorabench.bench.records.rehearsal import Rehearsal
from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import trace

HERE = Path(__file__).parent
SUITES = sorted((HERE / "rehearsals").glob("*.yaml"))
"""Each is named after its GPU."""
PAGE = HERE.parent / "docs" / "accuracy.md"
SAMPLE = HERE.parent / "tests" / "estimator" / "rehearsed"
BEGIN, END = "<!-- begin: benchmarks/rehearsal_errors.py -->", "<!-- end -->"


class Bytes(NamedTuple):
    """The peaks of one recipe, counted, estimated or traced."""

    allocated: int
    """What `torch.cuda.max_memory_allocated` says: whole blocks."""
    requested: int
    """What tensors ask for."""
    reserved: int


class Row(NamedTuple):
    """One recipe on one GPU."""

    gpu: str
    recipe: str
    rehearsed: Bytes
    estimated: Bytes
    traced: Bytes

    def errors(self) -> list[float]:
        """Return the relative errors of the estimate's and the trace's peaks: allocated, requested, reserved."""
        return [
            ours / real - 1
            for real, *both in zip(self.rehearsed, self.estimated, self.traced, strict=True)
            for ours in both
        ]

    def worst(self) -> float:
        """Return the largest error of allocated bytes, without its sign."""
        return max(map(abs, self.errors()[:2]))


def rehearse(folder: Path) -> None:
    """Rehearse every suite into ``folder``, keeping the records that are there."""
    for suite in SUITES:
        command = ["rehearse", str(suite), "--gpu", suite.stem, "-o", str(folder / suite.stem)]
        subprocess.run([sys.executable, "-m", "lorabench", *command], check=True)


def compare(record: RunRecord, rehearsal: Rehearsal, label: str, gpu: str) -> Row:
    """Estimate and trace the recipe of ``record``."""
    resolved = ResolvedRecipe(read_config(record.model_config, record.recipe.model), record.recipe)
    capability = find_device(gpu).compute_capability
    memory = replayed_memory(resolved, capability)
    traced = trace(resolved, compute_capability=capability)
    counted = rehearsal.memory
    assert rehearsal.requested_peak_bytes is not None
    assert counted.peak_reserved_bytes is not None
    assert memory.peak_reserved_bytes is not None
    assert traced.memory.peak_reserved_bytes is not None
    assert traced.max_memory_allocated_bytes is not None
    return Row(
        gpu=gpu,
        recipe=label,
        rehearsed=Bytes(counted.peak_allocated_bytes, rehearsal.requested_peak_bytes, counted.peak_reserved_bytes),
        estimated=Bytes(
            memory.peak_allocated_bytes,
            memory.peak_requested_bytes,
            memory.peak_reserved_bytes,
        ),
        traced=Bytes(
            traced.max_memory_allocated_bytes, traced.memory.peak_allocated_bytes, traced.memory.peak_reserved_bytes
        ),
    )


def compare_all(folder: Path) -> Iterator[Row | str]:
    """Yield a row for each recipe that ran, and a line for each other."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(_compared, *zip(*_records(folder), strict=True))


def _records(folder: Path) -> Iterator[tuple[RunRecord, str, str]]:
    """Yield each record with the recipe's label and the GPU."""
    for suite in SUITES:
        if (folder / suite.stem).is_dir():
            records = read_records(folder / suite.stem)
            labels = distinct_labels({record.digest: record.recipe for record in records})
            yield from ((record, labels[record.digest], suite.stem) for record in records)


def _compared(record: RunRecord, label: str, gpu: str) -> Row | str:
    if record.rehearsal is None:
        return f"{gpu}: {label}: {record.outcome}: {record.message}"
    return compare(record, record.rehearsal, label, gpu)


def keep(folder: Path) -> None:
    """Write the records into `SAMPLE`, small: no predictions, no tracebacks, and no facts that are None."""
    for suite in SUITES:
        kept = SAMPLE / suite.stem
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for record in read_records(folder / suite.stem) if (folder / suite.stem).is_dir() else ():
            content = msgspec.to_builtins(replace(record, prediction=None, traceback=None))
            content["environment"] = _stated(content["environment"])
            (kept / record.file_name).write_bytes(msgspec.json.encode(_stated(content)) + b"\n")


def _stated(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in facts.items() if fact is not None}


TITLES = ["estimate, allocated", "trace, allocated", "estimate, requested", "trace, requested"]
TITLES += ["estimate, reserved", "trace, reserved"]


def table(rows: Sequence[Row], others: Sequence[str]) -> str:
    """Return the errors as Markdown: how they spread, then each recipe, worst first."""
    lines = [f"{len(rows)} recipes ran, {len(others)} did not.", "", "| error | median | 19 in 20 within | worst |"]
    lines.append("|---|---:|---:|---:|")
    for title, column in zip(TITLES, zip(*[row.errors() for row in rows], strict=True), strict=True):
        sizes = sorted(map(abs, column))
        worst = max(column, key=abs)
        lines.append(f"| {title} | {median(sizes):.4%} | {sizes[int(0.95 * (len(sizes) - 1))]:.3%} | {worst:+.3%} |")
    lines += ["", f"| GPU | recipe | allocated | {' | '.join(TITLES)} |", f"|---|---|---:|{'---:|' * len(TITLES)}"]
    for row in sorted(rows, key=Row.worst, reverse=True):
        cells = [row.gpu, row.recipe, f"{row.rehearsed.allocated / 2**30:.2f} GiB"]
        lines.append(f"| {' | '.join([*cells, *(f'{error:+.3%}' for error in row.errors())])} |")
    if others:
        lines += ["", "Recipes that did not run:", "", *(f"- {line}" for line in others)]
    return "\n".join(lines)


def main() -> None:
    """Rehearse, unless only those records are to be compared that are there, and write the table."""
    match sys.argv[1:]:
        case [name]:
            folder, rehearses = Path(name), True
        case ["--compare", name]:
            folder, rehearses = Path(name), False
        case _:
            raise SystemExit("name one folder for the records: python benchmarks/rehearsal_errors.py [--compare] DIR")
    warnings.simplefilter("ignore")
    if rehearses:
        rehearse(folder)
    keep(folder)
    rows, others = [], []
    for found in compare_all(folder):
        if isinstance(found, Row):
            rows.append(found)
            print(f"{found.worst():8.3%} {found.gpu} {found.recipe}", flush=True)
        else:
            others.append(found)
            print(found, flush=True)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows, others)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
