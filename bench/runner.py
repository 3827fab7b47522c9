"""Run a suite: one process for each recipe, one record for each, whatever becomes of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from lorabench.bench.environment import DeviceChoice, Surroundings, probe_surroundings, require_bench_extra
from lorabench.bench.jobs import Answer, Job, Settings
from lorabench.bench.records import SUFFIX, Prediction, RunRecord, read_record, write_record
from lorabench.bench.suites import Planned, Suite
from lorabench.bench.text import file_documents
from lorabench.bench.worker import first_line, says_out_of_memory, without_own_folders
from lorabench.estimator.catalogue import find_model
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory import estimate_memory
from lorabench.estimator.parameters import count_parameters

TIMEOUT_SECONDS = 3600.0
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Unless set otherwise. OpenMP threads that spin while they wait make training on a busy CPU five times slower."""
END_SECONDS = 10
"""How long a worker that was killed may take to be gone."""


class Progress(Struct, frozen=True):
    """What became of one recipe of a suite."""

    number: int
    """From 1."""
    of: int
    record: RunRecord
    resumed: bool
    """Whether the record was there already."""


def prepare_folder(folder: Path, suite: Suite) -> dict[str, RunRecord]:
    """Make the results folder, and return the records that are in it, by digest.

    Raises:
        UserError: it cannot be made or written, or holds a broken record or one of another suite.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise UserError(f"{folder}: is a file: name another folder with -o") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}: name another folder with -o") from error
    records = [read_record(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    for record in records:
        if record.suite != suite.name:
            raise UserError(
                f"{folder}: holds records of the suite {record.suite!r}, not {suite.name!r}: "
                "name another folder with -o"
            )
    return {record.digest: record for record in records}


def run_suite(
    suite: Suite,
    folder: Path,
    *,
    device: DeviceChoice = "auto",
    seed: int = 0,
    weights: str | None = None,
    dataset: Path | None = None,
    resume: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
    before: Callable[[int, Planned], None] = lambda number, planned: None,
    after: Callable[[Progress], None] = lambda progress: None,
) -> list[RunRecord]:
    """Train every recipe of ``suite``, write its record into ``folder``, and return the records in order.

    A recipe that runs out of memory, fails or takes longer than ``timeout_seconds`` is a record like any other. With
    ``resume``, recipes whose record is there and ok are not run again. ``weights`` is ``hub`` or a folder with
    safetensors, None for random ones; ``dataset`` a text or .jsonl file, None for the text that Python ships.
    ``before`` and ``after`` are told of each recipe.

    Raises:
        UserError: before anything is trained: the packages that train are missing, there is no such device, the
            dataset or the weights are bad, or the folder cannot be written or holds records of another suite.
    """
    require_bench_extra()
    check_sources(suite, weights, dataset)
    there = prepare_folder(folder, suite)
    surroundings = probe_surroundings(device)
    settings = Settings(
        device=surroundings.device.kind,
        steps=suite.steps,
        warmup_steps=suite.warmup_steps,
        seed=seed,
        weights=weights,
        dataset=None if dataset is None else str(dataset),
    )
    records = []
    for number, planned in enumerate(suite.recipes, 1):
        before(number, planned)
        record = there.get(planned.digest)
        resumed = resume and record is not None and record.outcome == "ok"
        if record is None or not resumed:
            record = run_recipe(suite.name, planned, settings, surroundings, timeout_seconds=timeout_seconds)
            write_record(folder, record)
        records.append(record)
        after(Progress(number, len(suite.recipes), record, resumed))
    return records


def check_sources(suite: Suite, weights: str | None, dataset: Path | None) -> None:
    """Refuse weights and datasets that cannot be used, before anything is trained.

    Raises:
        UserError: the dataset is bad, or the weights' folder holds none or those of another model.
    """
    if dataset is not None:
        for _ in file_documents(dataset):
            pass
    if weights is None or weights == "hub":
        return
    if not any(Path(weights).glob("*.safetensors")):
        raise UserError(f"weights {weights}: no folder with *.safetensors: name one, or hub, or random")
    config = find_model(str(Path(weights).resolve())).config
    for planned in suite.recipes:
        if planned.spec.config != config:
            raise UserError(f"weights {weights}: they are of another model than {planned.spec.name}: run that folder")


def run_recipe(
    suite_name: str,
    planned: Planned,
    settings: Settings,
    surroundings: Surroundings,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> RunRecord:
    """Train one recipe in a process of its own and return its record, whether it went well or not."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    answer = ask_worker(planned, settings, timeout_seconds)
    return RunRecord(
        digest=planned.digest,
        suite=suite_name,
        recipe=planned.recipe,
        model_config=planned.spec.config,
        seed=settings.seed,
        weights="random" if settings.weights is None else "pretrained",
        dataset=None if settings.dataset is None else Path(settings.dataset).name,
        started_at=started_at,
        device=surroundings.device,
        environment=surroundings.environment,
        outcome=answer.outcome,
        message=answer.message,
        traceback=answer.traceback,
        prediction=predict(planned, settings),
        measurement=answer.measurement,
    )


def predict(planned: Planned, settings: Settings) -> Prediction | None:
    """Return the estimate for the device of ``settings``, or None where the recipe has no closed form there."""
    try:
        memory = estimate_memory(planned.spec, planned.recipe, settings.device)
    except UserError:
        return None
    return Prediction(parameters=count_parameters(planned.spec, planned.recipe), memory=memory)


def ask_worker(planned: Planned, settings: Settings, timeout_seconds: float) -> Answer:
    """Return the worker's answer, or what its end says where it could not give one."""
    with tempfile.TemporaryDirectory(prefix="lorabench-") as scratch:
        answer_path = Path(scratch) / "answer.json"
        said_path = Path(scratch) / "said.txt"
        job = Job(recipe=planned.recipe, spec=planned.spec, settings=settings, answer_path=str(answer_path))
        with said_path.open("wb") as said:
            # A session of its own: an interrupt at the terminal reaches the runner alone, which then ends the worker.
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "lorabench.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=WORKER_ENVIRONMENT | os.environ,
                start_new_session=True,
            )
        assert worker.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(msgspec.json.encode(job) + b"\n")
                worker.stdin.flush()
            worker.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return Answer(outcome="timeout", message=f"not done after {timeout_seconds:g} s (--timeout)")
        finally:
            _end(worker)
        if worker.returncode == 0:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                return msgspec.json.decode(answer_path.read_bytes(), type=Answer)
        return _answer_of_the_dead(worker.returncode, said_path.read_text(encoding="utf-8", errors="replace"))


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End the worker with all that it started."""
    if worker.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        # A process that waits for a driver cannot be killed at once; it is left to end when it can.
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(END_SECONDS)
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()


def _answer_of_the_dead(returncode: int, said: str) -> Answer:
    """Return the answer for a worker that ended without one."""
    if returncode == -signal.SIGKILL:
        return Answer(outcome="oom", message="killed by the kernel, as it does when memory runs out")
    end = f"killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
    last = [line for line in said.splitlines() if line.strip()][-40:]
    reason = f"the worker ended without an answer: {end}" + (f": {first_line(last[-1])}" if last else "")
    return Answer(
        outcome="oom" if says_out_of_memory(said) else "error",
        message=reason,
        traceback=without_own_folders("\n".join(last)) or None,
    )
