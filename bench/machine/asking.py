"""Run a module of lorabench in a separate process, and read its answer.

A broken library may crash that process, and CUDA holds memory on the GPU as long as the process lives. The answer is
the last line of its standard output. Whatever libraries print goes to its standard error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from msgspec import Struct

from lorabench.estimator.quiet import own_stdout, pass_on, quiet_environment, quiet_libraries
from lorabench.estimator.training.libraries import leave_out_hub_kernels
from lorabench.estimator.working_folder import require_working_folder


class Asked(Struct, frozen=True):
    """The result of a separate process."""

    exit_code: int
    """Negative for a signal."""
    answer: bytes
    last_words: str
    """Last line of its standard error."""


def ask(
    module: str, *arguments: str, timeout: float | None = None, environment: Mapping[str, str] | None = None
) -> Asked:
    """Run ``module`` with ``arguments`` to its end. ``environment`` is added to this process's.

    Raises:
        UserError: the working folder was deleted.
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
    """
    require_working_folder()
    ran = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=timeout,
        env=quiet_environment() | os.environ | dict(environment or {}),
    )
    output = ran.stderr.decode(errors="replace")
    pass_on(output)
    return Asked(ran.returncode, ran.stdout.rpartition(b"\n")[2], output.strip().rpartition("\n")[2])


@contextmanager
def answering() -> Iterator[Callable[[bytes], None]]:
    """Yield a function for the separate module's answer. Import and call libraries inside."""
    stdout = own_stdout()
    leave_out_hub_kernels()
    with quiet_libraries():
        yield lambda answer: _write(stdout, answer)


def _write(descriptor: int, answer: bytes) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as stdout:
        stdout.write(answer)
