"""Start and end worker processes, through the server that forks them."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from lorabench.bench.machine.host_memory import kernel_kills
from lorabench.bench.records.text import first_line, name_end
from lorabench.bench.running.failures import answer_of_crashed_worker
from lorabench.bench.running.jobs import Job, JobResult
from lorabench.bench.running.server_protocol import READ_BYTES, End, Ended, Notice, Ready, Request, Start
from lorabench.estimator.errors import UserError
from lorabench.estimator.quiet import pass_on, quiet_environment

ENVIRONMENT = {
    # Spinning OpenMP threads make training on a busy CPU five times slower. In lower case: in a Turkish locale libgomp
    # takes no I for an i.
    "OMP_WAIT_POLICY": "passive",
    # Count GPUs with NVML instead of CUDA, which does not survive a fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Defaults for the environment of server and workers."""
SERVER = (sys.executable, "-P", "-m", "lorabench.bench.running.server")
LEAST_SCRATCH_BYTES = 2**24
"""More than jobs, answers and output of workers need at the same time."""
END_SECONDS = 10
"""Maximum time for a killed process to end. A process that waits for a driver may never end."""


class Workers:
    """A context in which workers can be started. At its end, running workers are killed."""

    def __init__(
        self,
        scratch: Path,
        preload: Sequence[str] = (),
        command: Sequence[str] = SERVER,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Launch the server, and return before it is ready.

        Args:
            scratch: folder for jobs and answers.
            preload: modules that workers need.
            command: starts the server.
            environment: variables for the server in addition to this process's own.
        """
        self.environment = dict(environment or {})
        self.scratch = scratch
        self.command = [*command, *preload]
        self.jobs: dict[int, tuple[Job, int | None]] = {}
        """Number → (job, `kernel_kills` before the start) of the workers that have not ended."""
        self.started = 0
        self.forks: bool | None = None
        """Whether workers are forked or new interpreters; None before the first start."""
        self._serve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_server()

    def start(self, job: Job, environment: dict[str, str]) -> int:
        """Start a worker on ``job`` with additional variables, and return its number.

        Raises:
            UserError: no worker can be started here.
        """
        self._until_ready()
        self.started += 1
        number = self.started
        self._write_job(number, job)
        self.jobs[number] = job, kernel_kills()
        paths = {name: str(self._path(number, name)) for name in ("job", "answer", "output")}
        self._request(Start(number=number, environment=environment, **paths))
        return number

    def _write_job(self, number: int, job: Job) -> None:
        remedy = "set TMPDIR to a folder with free space"
        if shutil.disk_usage(self.scratch).free < LEAST_SCRATCH_BYTES:
            raise UserError(f"{self.scratch.parent}: no space for the answers of workers: {remedy}")
        try:
            self._path(number, "job").write_bytes(msgspec.json.encode(job))
        except OSError as error:
            raise UserError(f"{self.scratch.parent}: cannot write here: {error.strerror}: {remedy}") from error

    def end(self, number: int) -> None:
        """Kill the worker and all processes that it started."""
        self._request(End(number=number))

    def wait(self, seconds: float) -> dict[int, JobResult]:
        """Return number → result of workers that have ended; wait at most ``seconds`` for one."""
        until = time.monotonic() + seconds
        while True:
            notices = self._read_notices(max(0.0, until - time.monotonic()))
            if notices is None:
                return self._server_died()
            ended = [notice for notice in notices if isinstance(notice, Ended) and notice.number in self.jobs]
            if ended or time.monotonic() >= until:
                return {notice.number: self._answer(notice.number, notice.exit_code) for notice in ended}

    # The server.

    def _serve(self) -> None:
        self.ready = False
        self.buffer = b""
        with self._path(0, "output").open("wb") as output:
            # Own session: an interrupt at the terminal must reach only the runner.
            self.server = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                bufsize=0,
                env=ENVIRONMENT | quiet_environment() | os.environ | self.environment,
                start_new_session=True,
            )

    def _until_ready(self) -> None:
        if self.server.poll() is not None:
            self._serve()
        while not self.ready:
            notices = self._read_notices(None)
            if notices is None:
                code = self._end_server()
                last = first_line(self._output_of(0).strip().rpartition("\n")[2])
                raise UserError(f"no worker can be started: {name_end(code)}: {last}")
            for notice in notices:
                if isinstance(notice, Ready):
                    self.ready, self.forks = True, notice.forks
                    pass_on(self._output_of(0))

    def _request(self, request: Request) -> None:
        with suppress(BrokenPipeError):  # the server died; wait() reports it
            _open(self.server.stdin).write(msgspec.json.encode(request) + b"\n")

    def _read_notices(self, seconds: float | None) -> list[Notice] | None:
        """Return the server's notices within ``seconds`` (None: no limit), or None if the server has died."""
        with selectors.DefaultSelector() as selector:
            selector.register(_open(self.server.stdout), selectors.EVENT_READ)
            if not selector.select(seconds):
                return []
        read = _open(self.server.stdout).read(READ_BYTES)
        if not read:
            return None
        *lines, self.buffer = (self.buffer + read).split(b"\n")
        return [msgspec.json.decode(line, type=Notice) for line in lines]

    def _end_server(self) -> int:
        """End the server and its workers, and return the server's exit code."""
        if not self.ready:
            self.server.kill()  # it would finish its imports first, and has no workers yet
        with suppress(BrokenPipeError):
            _open(self.server.stdin).close()
        try:
            self.server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.server.send_signal(signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.server.wait(END_SECONDS)
        _open(self.server.stdout).close()
        return self.server.returncode if self.server.returncode is not None else -signal.SIGKILL

    def _server_died(self) -> dict[int, JobResult]:
        """Return the results of the workers that died with the server. The next start() launches a new one."""
        message = f"the server that forks workers ended: {name_end(self._end_server())}"
        answers = {number: JobResult(outcome="error", message=message) for number in self.jobs}
        self.jobs.clear()
        return answers

    # Files of workers.

    def _answer(self, number: int, exit_code: int) -> JobResult:
        job, kills_before = self.jobs.pop(number)
        output = self._output_of(number)
        pass_on(output)
        try:
            if exit_code == 0:
                with suppress(OSError, msgspec.DecodeError):
                    return msgspec.json.decode(self._path(number, "answer").read_bytes(), type=JobResult)
            kills = kernel_kills()
            risen = None if kills is None or kills_before is None else kills - kills_before
            return answer_of_crashed_worker(exit_code, output, job.settings.backend, risen)
        finally:
            for name in ("job", "answer", "output"):
                self._path(number, name).unlink(missing_ok=True)

    def _path(self, number: int, name: str) -> Path:
        return self.scratch / f"{number}.{name}"

    def _output_of(self, number: int) -> str:
        try:
            return self._path(number, "output").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
