"""Run a suite: one process and one record per recipe, even if a recipe fails."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from lorabench.bench.machine.device_rates import device_rates
from lorabench.bench.machine.environment import DeviceChoice, Surroundings, probe_surroundings, require_bench_extra
from lorabench.bench.machine.gpu_probe import FILE_NAME, Answer, probe_gpu
from lorabench.bench.records.record import DeviceFacts, Key, Prediction, RunRecord
from lorabench.bench.records.rehearsal import Rehearsal
from lorabench.bench.records.results import Results, open_results
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.fit import reason_to_skip
from lorabench.bench.running.interrupts import interrupts_deferred
from lorabench.bench.running.jobs import Job, JobResult
from lorabench.bench.running.resuming import differences, from_elsewhere, replaced, snapshot_path
from lorabench.bench.running.sources import check_sources, digest_sources, hub_environment
from lorabench.bench.running.tasks import Lane, Task, lanes_of, tasks_of
from lorabench.bench.running.workers import END_SECONDS, Workers
from lorabench.bench.suites.suite import Suite
from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import refuse_missing_kernels

TIMEOUT_SECONDS = 3600.0
LONGEST_WAIT_SECONDS = 0.25
"""Maximum time between two calls of `Watcher.waiting`."""


class Progress(Struct, frozen=True, kw_only=True):
    """The result of one task."""

    number: int
    """From 1, in the order of ending."""
    task: Task
    record: RunRecord
    seconds: float = 0.0
    """From start to end."""
    resumed: bool = False
    """Whether the record existed already."""


class Watcher:
    """Base listener: ignores all events."""

    def prepared(self, tasks: Sequence[Task], lanes: Sequence[Lane], notices: Sequence[str]) -> None:
        """Called before the first task, with notices about the folder."""

    def started(self, task: Task) -> None:
        """Called when a task starts."""

    def recorded(self, number: int) -> None:
        """Called with the number of records so far, as soon as the latest is written. An interrupt waits for it."""

    def ended(self, progress: Progress) -> None:
        """Called when a task has ended and its record is written."""

    def probed(self, answers: Sequence[Answer]) -> None:
        """Called with the answers of the GPU probe."""

    def waiting(self) -> None:
        """Called several times a second while waiting."""


class Finished(Struct, frozen=True, kw_only=True):
    """The result of a suite."""

    records: tuple[RunRecord, ...]
    """Records in the order of the suite."""
    left: int
    """Number of tasks that did not start or finish within the time limit."""


def run_suite(
    suite: Suite,
    folder: Path,
    *,
    settings: Settings,
    device: DeviceChoice = "auto",
    resume: bool = False,
    skip_unfit: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
    time_limit_seconds: float | None = None,
    watcher: Watcher | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Train every recipe of ``suite`` and write a record for each into ``folder``; on several GPUs, side by side.

    A recipe that runs out of memory, fails or takes longer than ``timeout_seconds`` gets a record too.

    Args:
        settings: for all recipes. ``device`` replaces its backend; the index of the repeat is added to its seed.
        resume: skip a task if its record exists, was requested in the same way and is `resuming.CONCLUSIVE`. Tasks
            without a record come first.
        skip_unfit: skip recipes that are predicted not to fit; their records say so.
        time_limit_seconds: after this time, running tasks are ended without a record.
        environment: variables for the training processes, such as those of a null GPU (`null_gpu_environment`). Runs on
            a null GPU are recorded as rehearsed.

    Raises:
        UserError: before training: packages for training are missing; there is no such device; the dataset or the
            weights are bad; the only recipe has no kernels there. Also before training: the folder cannot be written,
            or has records of another suite or device, or both rehearsals and measurements. Later: a record cannot be
            written; earlier records exist.
    """
    begun = time.monotonic()
    require_bench_extra()
    check_sources(suite, settings)
    environment = {**(environment or {}), **hub_environment(suite, settings)}
    watcher = watcher or Watcher()
    with (
        open_results(folder, suite.name) as results,
        _scratch_folder() as scratch,
        Workers(scratch, preload=_modules_of(suite), environment=environment) as workers,
    ):
        surroundings = probe_surroundings(device, environment)
        _refuse_other_records(results, surroundings)
        settings = replace(settings, backend=surroundings.device.backend)
        check_device(settings)
        if suite.probe:
            _probe(suite, surroundings, folder / FILE_NAME, watcher, environment, resume=resume)
        unable = _without_kernels(suite, settings.backend)
        tasks = list(tasks_of(suite, settings, digest_sources(settings)))
        lanes = lanes_of(surroundings)
        kept: list[Task] = []
        waiting: list[Task] = []
        for task in tasks:
            (kept if resume and differences(results, task) == [] else waiting).append(task)
        elsewhere = from_elsewhere(results, kept, surroundings.environment)
        watcher.prepared(tasks, lanes, [*results.notices, *replaced(results, waiting), *elsewhere, *unable])
        run = _Run(suite.name, surroundings, results, workers, watcher, rehearsing=surroundings.null_gpu)
        for task in kept:
            run.keep(task)
        if resume:
            waiting.sort(key=lambda task: task.key in results.records)
        run.run(
            waiting,
            lanes,
            skip_unfit=skip_unfit,
            timeout_seconds=timeout_seconds,
            end=None if time_limit_seconds is None else begun + time_limit_seconds,
        )
        done = [results.records[task.key] for task in tasks if task.key in run.done]
        return Finished(records=tuple(done), left=len(tasks) - len(done))


class _Running(Struct):
    task: Task
    lane: Lane
    prediction: Prediction | None
    started: float
    started_at: str
    ended: float | None = None
    """Time at which it was ended, after its timeout."""


class _Run:
    """One call of `run_suite`, after preparation."""

    def __init__(
        self,
        suite_name: str,
        surroundings: Surroundings,
        results: Results,
        workers: Workers,
        watcher: Watcher,
        *,
        rehearsing: bool,
    ) -> None:
        self.rehearsing = rehearsing
        self.suite_name = suite_name
        self.surroundings = surroundings
        self.results = results
        self.workers = workers
        self.watcher = watcher
        self.done: set[Key] = set()
        self.longest = 0.0
        """Seconds of the longest task so far."""

    def keep(self, task: Task) -> None:
        """Keep the existing record for this task, and report it."""
        self._count(task)
        self._tell(task, self.results.records[task.key], resumed=True)

    def run(
        self,
        tasks: Iterable[Task],
        lanes: Iterable[Lane],
        *,
        skip_unfit: bool,
        timeout_seconds: float,
        end: float | None,
    ) -> None:
        """Run ``tasks`` on free lanes until none is left, or until ``end`` (monotonic seconds)."""
        queue, free = deque(tasks), deque(lanes)
        running: dict[int, _Running] = {}
        while queue or running:
            now = time.monotonic()
            if end is not None and now >= end:
                return
            while queue and free and (end is None or not self.longest or now + self.longest <= end):
                if self._begin(queue.popleft(), free[0], running, skip_unfit):
                    free.popleft()
            if not running:
                return  # the remaining tasks would not finish in time
            for number, answer in self.workers.wait(LONGEST_WAIT_SECONDS).items():
                # A task that was given up may still answer.
                if number in running:
                    free.append(running[number].lane)
                    self._finish(running.pop(number), answer, timeout_seconds)
            for number, late in self._late(running, timeout_seconds):
                free.append(late.lane)
                self._finish(running.pop(number), JobResult(outcome="timeout"), timeout_seconds)
            self.watcher.waiting()

    def _predict(self, task: Task, lane: Lane) -> Prediction | None:
        return predict(task.resolved, lane.device, self.surroundings.environment.allocator)

    def _begin(self, task: Task, lane: Lane, running: dict[int, _Running], skip_unfit: bool) -> bool:
        """Start ``task`` on ``lane``. If it is not worth trying, write its record and return False."""
        started = time.monotonic()
        begun = _Running(task, lane, self._predict(task, lane), started, _now())
        if skip_unfit and begun.prediction is not None:
            reason = reason_to_skip(begun.prediction.memory, lane.device)
            if reason is not None:
                self._record(begun, JobResult(outcome="skipped", message=reason))
                return False
        job = Job(
            resolved=task.resolved,
            settings=task.settings,
            snapshot_path=str(snapshot_path(self.results.folder, task)) if task.settings.memory_snapshot else None,
        )
        number = self.workers.start(job, lane.environment)
        begun.started = time.monotonic()
        running[number] = begun
        self.watcher.started(task)
        return True

    def _late(self, running: dict[int, _Running], timeout_seconds: float) -> list[tuple[int, _Running]]:
        """End tasks after their timeout, and return those that cannot be ended."""
        now = time.monotonic()
        for number, one in running.items():
            if one.ended is None and now - one.started >= timeout_seconds:
                self.workers.end(number)
                one.ended = now
        return [(number, one) for number, one in running.items() if one.ended and now - one.ended >= END_SECONDS]

    def _finish(self, one: _Running, answer: JobResult, timeout_seconds: float) -> None:
        if one.ended is not None:
            answer = JobResult(outcome="timeout", message=f"took over {timeout_seconds:g} s (--timeout)")
        self._record(one, answer)

    def _record(self, one: _Running, answer: JobResult) -> None:
        seconds = time.monotonic() - one.started
        self.longest = max(self.longest, seconds)
        resolved = one.task.resolved
        rehearsing = self.rehearsing
        record = RunRecord(
            digest=resolved.digest,
            suite=self.suite_name,
            recipe=resolved.recipe,
            model_config=resolved.spec.config,
            started_at=one.started_at,
            seconds=None if rehearsing else seconds,
            device=one.lane.device,
            environment=self.surroundings.environment,
            outcome=answer.outcome,
            out_of=answer.out_of,
            message=answer.message,
            traceback=answer.traceback,
            prediction=one.prediction,
            measurement=None if rehearsing else answer.measurement,
            rehearsed=rehearsing,
            rehearsal=Rehearsal.of(answer.measurement) if rehearsing and answer.measurement is not None else None,
            **one.task.facts,
        )
        # Otherwise an interrupted run could leave a record that its last message does not count.
        with interrupts_deferred():
            self.results.write(record)
            self._count(one.task)
        self._tell(one.task, record, seconds=seconds)

    def _count(self, task: Task) -> None:
        self.done.add(task.key)
        self.watcher.recorded(len(self.done))

    def _tell(self, task: Task, record: RunRecord, *, seconds: float = 0.0, resumed: bool = False) -> None:
        self.watcher.ended(Progress(number=len(self.done), task=task, record=record, seconds=seconds, resumed=resumed))


def predict(resolved: ResolvedRecipe, device: DeviceFacts, allocator: str | None = None) -> Prediction | None:
    """Return the estimate for ``device`` with the settings ``allocator`` of torch's allocator.

    It is None if the recipe has no closed form there, or if the allocator cannot be replayed.
    """
    rates = device_rates(device)
    try:
        memory = replayed_memory(
            resolved,
            device.backend,
            rates.device.compute_capability,
            rates.device.multiprocessors,
            allocator=device.allocator_settings(allocator),
        )
    except UserError:
        return None
    speed = rates.throughput(resolved)
    return Prediction(parameters=resolved.parameters, memory=memory, speed=speed)


def check_device(settings: Settings) -> None:
    """Refuse settings that the device does not support.

    Raises:
        UserError: a snapshot of CUDA's allocator is requested, but recipes run on the CPU.
    """
    if settings.memory_snapshot and settings.backend == "cpu":
        raise UserError(
            "--memory-snapshot needs CUDA's allocator, but recipes run on the CPU here: use --timeline, "
            "which counts live tensors"
        )


def _probe(
    suite: Suite,
    surroundings: Surroundings,
    path: Path,
    watcher: Watcher,
    environment: Mapping[str, str] | None,
    *,
    resume: bool,
) -> None:
    """Probe the GPU, as the suite requests; with ``resume`` only what has no answer yet.

    Raises:
        UserError: recipes run on the CPU.
    """
    if surroundings.device.backend != "cuda":
        raise UserError(f"suite {suite.name} probes a GPU, but recipes run on the CPU here: run another, such as smoke")
    if not resume:
        path.unlink(missing_ok=True)
    watcher.probed(probe_gpu(path, environment, rehearsing=surroundings.null_gpu))


def _without_kernels(suite: Suite, backend: Backend) -> list[str]:
    """Return the recipes of ``suite`` that cannot run on ``backend``, one line per reason.

    Raises:
        UserError: the only recipe cannot run there.
    """
    labels = suite.labels()
    unable: dict[str, list[str]] = defaultdict(list)
    for resolved in suite.recipes:
        try:
            refuse_missing_kernels(resolved.recipe, backend)
        except UserError as error:
            if len(suite.recipes) == 1:
                raise
            unable[str(error)].append(labels[resolved.digest])
    return [f"cannot run here: {', '.join(names)}: {reason}" for reason, names in unable.items()]


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="lorabench-")
    except OSError as error:
        raise UserError(f"cannot create a temporary folder: {error.strerror}: set TMPDIR to one with space") from error
    with folder as path:
        yield Path(path)


def _refuse_other_records(results: Results, surroundings: Surroundings) -> None:
    here = surroundings.device
    for record in results.records.values():
        if record.rehearsed != surroundings.null_gpu:
            there, now = ("rehearsals", "measures") if record.rehearsed else ("measurements", "rehearses")
            raise UserError(
                f"{results.folder}: has records of {there}, but this run {now}: name another folder with -o"
            )
        if (record.device.backend, record.device.name) != (here.backend, here.name):
            raise UserError(
                f"{results.folder}: has records of {record.device.name} ({record.device.backend}), but this is "
                f"{here.name} ({here.backend}): name another folder with -o"
            )


def _modules_of(suite: Suite) -> list[str]:
    """Return the modules of transformers with the suite's architectures."""
    types = {resolved.spec.model_type for resolved in suite.recipes}
    return [f"transformers.models.{name}.modeling_{name}" for name in sorted(types) if name.isidentifier()]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
