"""The server process that forks a worker for each recipe (``python -m lorabench.bench.running.server``).

It does the heavy imports and nothing else: it does not initialise CUDA, start threads, draw random numbers or run
tensor operations. A worker therefore starts in milliseconds and inherits only code.

It reads a `Request` from each line of standard input and writes a `Notice` to each line of standard output
(`server_protocol`). If standard input closes, the runner has ended, and the server ends all workers and itself. A
worker leads its own process group, and the kernel kills it if the server dies.

A forked worker starts in 0.13 s. A fresh interpreter with the same imports starts in 21 s on the same busy machine, and
in 4 s on an idle one (`benchmarks/worker_start.py`, two cores of an AMD EPYC, November 2026). That is 8 minutes over
the 120 recipes of the reference suite. The standard library's ``multiprocessing.forkserver`` forks as fast, but it

- ignores import errors, and there is only one per process, whose imports are fixed at its first use;
- reaps a worker before anybody can kill the worker's process group, whose id may be reused by then;
- reports exit code 255 if the server died, as if the worker had returned it;
- gives every import access to the runner's terminal.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import selectors
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from lorabench.bench.running import worker
from lorabench.bench.running.no_cuda_init import no_cuda_init
from lorabench.bench.running.server_protocol import READ_BYTES, Ended, Notice, Ready, Request, Start
from lorabench.estimator.quiet import own_stdout, quiet_libraries
from lorabench.estimator.training.libraries import leave_out_hub_kernels

PRELOAD: tuple[str, ...] = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
"""Imports of every worker."""
PRELOAD_WHERE_THERE: tuple[str, ...] = (
    "torch._dynamo",
    "transformers.conversion_mapping",
    "transformers.integrations.bitsandbytes",
    "transformers.trainer",
    "peft.tuners.lora.bnb",
    "pydoc_data.topics",
)
"""Modules that these import lazily and slowly. Their names may change."""
PR_SET_PDEATHSIG = 1
"""Option of prctl(2): signal to receive when the parent dies."""
FIRST_TO_KILL = 1000
"""Value for oom_score_adj, proc(5): if memory runs out, the OOM killer takes a worker first."""


def main() -> None:
    """Serve until standard input closes."""
    notices = own_stdout()
    leave_out_hub_kernels()
    with quiet_libraries():
        preload()
    gc.collect()
    gc.freeze()  # so the collector does not write to pages shared with workers
    _Server(notices, forks=cuda_survives_a_fork()).serve()
    os._exit(0)  # skips the libraries' exit handlers, which take seconds


def preload() -> None:
    """Import the modules that workers need."""
    with no_cuda_init():
        for module in PRELOAD:
            importlib.import_module(module)
        for module in (*PRELOAD_WHERE_THERE, *sys.argv[1:]):
            with suppress(ImportError):  # the worker that needs it will report it
                importlib.import_module(module)


def cuda_survives_a_fork() -> bool:
    """Return whether a forked process can use CUDA, by trying it.

    It cannot if an import has initialised CUDA; workers are then started as new interpreters. True without a CUDA
    device.
    """
    child = os.fork()
    if child == 0:
        import torch

        try:
            if torch.cuda.is_available():
                torch.cuda.init()  # type: ignore[no-untyped-call]
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class _Server:
    def __init__(self, notices: int, *, forks: bool) -> None:
        self.forks = forks
        self.requests, self.notices = os.dup(0), notices
        _redirect(os.devnull, os.O_RDONLY, 0)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.requests, selectors.EVENT_READ)
        # Not with pidfd_open: sandboxes such as gVisor lack it.
        self.deaths, self.death_signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.death_signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.selector.register(self.deaths, selectors.EVENT_READ)
        self.workers: dict[int, int] = {}
        """Number → process id of workers that live or are not reaped yet."""

    def serve(self) -> None:
        self._tell(Ready(forks=self.forks))
        buffer = b""
        while True:
            for key, _ in self.selector.select():
                if key.fd == self.deaths:
                    os.read(self.deaths, READ_BYTES)
                    for number in [number for number, pid in self.workers.items() if _has_ended(pid)]:
                        self._wait_for(number)
                    continue
                read = os.read(self.requests, READ_BYTES)
                if not read:
                    for number in list(self.workers):
                        self._kill(number)
                        self._wait_for(number)
                    return
                *lines, buffer = (buffer + read).split(b"\n")
                for line in lines:
                    self._handle(msgspec.json.decode(line, type=Request))

    def _handle(self, request: Request) -> None:
        if isinstance(request, Start):
            self._start(request)
        elif request.number in self.workers:
            self._kill(request.number)

    def _start(self, request: Start) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(request, server)
        self.workers[request.number] = pid

    def _become_worker(self, request: Start, server: int) -> NoReturn:
        exit_code = 1
        try:
            os.setsid()
            die_with_parent(server)
            _redirect(request.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1)
            os.dup2(1, 2)
            signal.set_wakeup_fd(-1)  # Python 3.12 and later already do so if asyncio is imported
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.selector.close()
            for descriptor in (self.requests, self.notices, self.deaths, self.death_signals):
                os.close(descriptor)
            with suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_KILL))
            os.environ.update(request.environment)
            if not self.forks:
                command = [sys.executable, "-P", "-m", worker.__name__, request.job, request.answer]
                os.execv(sys.executable, command)  # noqa: S606 - the same program, with these fixed arguments
            worker.main(request.job, request.answer)
            exit_code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Skip the exit handlers inherited from the server.
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(exit_code)

    def _kill(self, number: int) -> None:
        pid = self.workers[number]  # cannot be reused before it is reaped
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        # It may not have created its group yet.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _wait_for(self, number: int) -> None:
        """Reap a worker that has ended, and kill processes that it left behind."""
        pid = self.workers.pop(number)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self._tell(Ended(number=number, exit_code=os.waitstatus_to_exitcode(status)))

    def _tell(self, notice: Notice) -> None:
        with suppress(BrokenPipeError):
            os.write(self.notices, msgspec.json.encode(notice) + b"\n")


def _has_ended(pid: int) -> bool:
    """Return whether the child has ended, without reaping it, so its id cannot be reused yet."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent dies. End at once if that has already happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _redirect(path: str, flags: int, descriptor: int) -> None:
    opened = os.open(path, flags, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


if __name__ == "__main__":
    main()
