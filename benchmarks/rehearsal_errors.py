"""How far the estimate and the trace are off: rehearsals of 155 recipes of real size on five GPUs.

Run with `python benchmarks/rehearsal_errors.py DIR` in an environment with a CUDA build of torch, such as
`make .venv-cuda/.installed` makes, with liger-kernel added. Each suite in `benchmarks/rehearsals/` is rehearsed on the
GPU that its file is named after, into a folder of DIR; records that are there are kept. Then every recipe is estimated
and traced, and the table goes into docs/accuracy.md, between its marks. Copies of the records, without predictions, go
into `tests/estimator/rehearsed/`. A rehearsal takes some 10 to 30 s, a trace some 5 s.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
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
from lorabench.estimator.devices.device import Device, find_device
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
    """Bytes that tensors request."""
    reserved: int


class Row(NamedTuple):
    """One recipe on one GPU."""

    gpu: str
    recipe: str
    rehearsed: Bytes
    estimated: Bytes
    traced: Bytes | None

    def errors(self) -> dict[str, float]:
        """Return the relative errors of the estimate's and, if it was traced, the trace's peaks."""
        answers = {"estimate": self.estimated} | ({} if self.traced is None else {"trace": self.traced})
        return {
            f"{answer}, {peak}": getattr(peaks, peak) / getattr(self.rehearsed, peak) - 1
            for peak in Bytes._fields
            for answer, peaks in answers.items()
        }

    def worst(self) -> float:
        """Return the largest error of allocated bytes, without its sign."""
        return max(abs(error) for title, error in self.errors().items() if title.endswith("allocated"))


def rehearse(folder: Path) -> None:
    """Rehearse every suite into ``folder``, keeping the records that are there."""
    for suite in SUITES:
        command = ["rehearse", str(suite), "--gpu", suite.stem, "-o", str(folder / suite.stem)]
        subprocess.run([sys.executable, "-m", "lorabench", *command], check=True)


def compare(record: RunRecord, rehearsal: Rehearsal, label: str, gpu: str, *, traces: bool) -> Row:
    """Estimate the recipe of ``record``, and trace it if asked."""
    resolved = ResolvedRecipe(read_config(record.model_config, record.recipe.model), record.recipe)
    device = find_device(gpu)
    capability, counted = device.compute_capability, rehearsal.memory
    memory = replayed_memory(resolved, compute_capability=capability, multiprocessors=device.multiprocessors)
    assert rehearsal.requested_peak_bytes is not None
    assert counted.peak_reserved_bytes is not None
    assert memory.peak_reserved_bytes is not None
    return Row(
        gpu=gpu,
        recipe=label,
        rehearsed=Bytes(counted.peak_allocated_bytes, rehearsal.requested_peak_bytes, counted.peak_reserved_bytes),
        estimated=Bytes(memory.peak_allocated_bytes, memory.peak_requested_bytes, memory.peak_reserved_bytes),
        traced=_traced(resolved, device) if traces else None,
    )


def _traced(resolved: ResolvedRecipe, device: Device) -> Bytes:
    memory = trace(
        resolved, compute_capability=device.compute_capability, multiprocessors=device.multiprocessors
    ).memory
    assert memory.peak_reserved_bytes is not None
    return Bytes(memory.peak_allocated_bytes, memory.peak_requested_bytes, memory.peak_reserved_bytes)


def compare_all(folder: Path, *, traces: bool) -> Iterator[Row | str]:
    """Yield a row for each recipe that ran, and a line for each other."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_compared, traces=traces), *zip(*_records(folder), strict=True))


def _records(folder: Path) -> Iterator[tuple[RunRecord, str, str]]:
    """Yield each record with the recipe's label and the GPU."""
    for suite in SUITES:
        if (folder / suite.stem).is_dir():
            records = read_records(folder / suite.stem)
            labels = distinct_labels({record.digest: record.recipe for record in records})
            yield from ((record, labels[record.digest], suite.stem) for record in records)


def _compared(record: RunRecord, label: str, gpu: str, *, traces: bool) -> Row | str:
    if record.rehearsal is None:
        return f"{gpu}: {label}: {record.outcome}: {record.message}"
    return compare(record, record.rehearsal, label, gpu, traces=traces)


def keep_records(records: Iterable[RunRecord], folder: Path) -> None:
    """Let ``folder`` hold ``records`` alone, small: no predictions, no tracebacks, and no facts that are None."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for record in records:
        content = msgspec.to_builtins(replace(record, prediction=None, traceback=None))
        content["environment"] = _stated(content["environment"])
        (folder / record.file_name).write_bytes(msgspec.json.encode(_stated(content)) + b"\n")


def _stated(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in facts.items() if fact is not None}


def table(rows: Sequence[Row], others: Sequence[str]) -> str:
    """Return the errors as Markdown: how they spread, then each recipe, worst first."""
    lines = [f"{len(rows)} recipes ran, {len(others)} did not.", "", "| error | median | 19 in 20 within | worst |"]
    lines.append("|---|---:|---:|---:|")
    titles = list(rows[0].errors())
    for title in titles:
        column = [row.errors()[title] for row in rows]
        sizes = sorted(map(abs, column))
        worst = max(column, key=abs)
        lines.append(f"| {title} | {median(sizes):.4%} | {sizes[int(0.95 * (len(sizes) - 1))]:.3%} | {worst:+.3%} |")
    lines += ["", f"| GPU | recipe | allocated | {' | '.join(titles)} |", f"|---|---|---:|{'---:|' * len(titles)}"]
    for row in sorted(rows, key=Row.worst, reverse=True):
        cells = [row.gpu, row.recipe, f"{row.rehearsed.allocated / 2**30:.2f} GiB"]
        lines.append(f"| {' | '.join([*cells, *(f'{error:+.3%}' for error in row.errors().values())])} |")
    if others:
        lines += ["", "Recipes that did not run:", "", *(f"- {line}" for line in others)]
    return "\n".join(lines)


def replace_between(page: Path, begin: str, end: str, text: str) -> None:
    """Write ``text`` into ``page`` in place of what is between the marks ``begin`` and ``end``."""
    before, rest = page.read_text(encoding="utf-8").split(begin)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Rehearse and compare as the command line says, and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="folder of the records")
    options.add_argument("--compare", action="store_true", help="rehearse nothing; take the records that are there")
    options.add_argument("--no-trace", action="store_true", help="leave the traces out, which take most of the time")
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    if not asked.compare:
        rehearse(asked.folder)
        for suite in SUITES:
            keep_records(read_records(asked.folder / suite.stem), SAMPLE / suite.stem)
    rows, others = [], []
    for found in compare_all(asked.folder, traces=not asked.no_trace):
        if isinstance(found, Row):
            rows.append(found)
            print(f"{found.worst():8.3%} {found.gpu} {found.recipe}", flush=True)
        else:
            others.append(found)
            print(found, flush=True)
    replace_between(PAGE, BEGIN, END, table(rows, others))


if __name__ == "__main__":
    main()
