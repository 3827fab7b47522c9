"""Workers that only pretend to train, in real processes forked from a real server, to see what becomes of a suite.

``LORABENCH_PRETEND`` says how, in JSON: method → one of `BEHAVIOURS`; a method that is not in it is ok at once.
``python -m tests.bench.pretend_training ARGUMENTS`` is `lorabench ARGUMENTS` with such workers.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lorabench.bench.machine.environment import Surroundings
from lorabench.bench.running import runner, server, worker
from lorabench.bench.running.jobs import JobResult
from lorabench.bench.running.workers import Workers
from lorabench.cli import main
from tests.sample_records import sample_record

ROOT = Path(__file__).parents[2]
HOW, BELL = "LORABENCH_PRETEND", "LORABENCH_PRETEND_BELL"
"""BELL names a folder in which each worker leaves a file with its process id and what it was started with."""
SERVER = (sys.executable, "-m", "tests.bench.pretend_training", "--serve")
FACTS = sample_record()


def _say_and_exit() -> None:
    print("first\nCUDA error: out of memory", flush=True)
    os._exit(3)


def _kill_the_server() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def _leave_a_child() -> None:
    child = subprocess.Popen(["sleep", "600"])
    ring("child", pid=child.pid)


def _meet() -> None:
    """Be done only when two workers run at once."""
    until = time.monotonic() + 120
    while len(list(Path(os.environ[BELL]).glob("*.worker"))) < 2:
        assert time.monotonic() < until, "the other never came"
        time.sleep(0.01)


def _wait_for_the_word() -> None:
    """Be done when a file ``go`` is beside the bells."""
    until = time.monotonic() + 120
    while not (Path(os.environ[BELL]) / "go").exists():
        assert time.monotonic() < until, "the word never came"
        time.sleep(0.01)


def _fill_the_memory_of_a_group() -> None:
    """Join the control group of that file, and take memory until the kernel kills."""
    Path(os.environ["LORABENCH_PRETEND_GROUP"]).write_text(str(os.getpid()))
    taken = []
    while True:
        taken.append(bytearray(os.urandom(2**20)))


def _raise(error: BaseException) -> None:
    raise error


BEHAVIOURS: dict[str, Callable[[], object]] = {
    "hang": lambda: time.sleep(600),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "kill the server": _kill_the_server,
    "leave a child": _leave_a_child,
    "say and exit": _say_and_exit,
    "exit": lambda: sys.exit("no more of this"),
    "fill the memory": lambda: bytearray(2**50),
    "fill the memory of a group": _fill_the_memory_of_a_group,
    "raise": lambda: _raise(ValueError("broke\nin two lines")),
    "meet": _meet,
    "wait for the word": _wait_for_the_word,
}


def ring(kind: str, **facts: Any) -> None:
    if BELL in os.environ:
        bell = Path(os.environ[BELL]) / f"{facts['pid']}.{kind}"
        bell.with_suffix(".new").write_text(json.dumps(facts))
        bell.with_suffix(".new").rename(bell)


def pretend(resolved: Any, settings: Any, snapshot_path: Any = None) -> Any:
    """Stand in for `measure`."""
    method = resolved.recipe.method
    ring(
        "worker",
        pid=os.getpid(),
        session=os.getsid(0),
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
        method=method,
        seed=settings.seed,
        snapshot_path=snapshot_path,
        environ=dict(os.environ),
    )
    how = json.loads(os.environ.get(HOW, "{}")).get(method)
    if how:
        BEHAVIOURS[how]()
    return FACTS.measurement


def answer_of(error: Exception, *_: object) -> JobResult:
    """Stand in for the one that knows torch's errors."""
    if isinstance(error, MemoryError):
        return JobResult(outcome="oom", out_of="host", message="MemoryError")
    return JobResult(outcome="error", message=str(error).splitlines()[0], traceback="Traceback")


def serve() -> None:
    server.preload = lambda: None
    server.cuda_survives_a_fork = lambda: True  # which would import torch
    training: Any = worker
    training.measure = pretend
    training.answer_of = answer_of
    server.main()


def pretend_here(set_: Callable[[object, str, Any], object], surroundings: Surroundings | None = None) -> None:
    """Let this process's suites be trained by pretending workers, on a CPU or what ``surroundings`` say."""
    there = surroundings or Surroundings(device=FACTS.device, environment=FACTS.environment)
    set_(runner, "Workers", partial(Workers, command=SERVER))
    set_(runner, "probe_surroundings", lambda *_: there)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        del sys.argv[1:]
        serve()
    pretend_here(setattr)
    main()
