"""Messages between the runner and the server that forks workers: one line of JSON each."""

from __future__ import annotations

from msgspec import Struct

READ_BYTES = 2**16
"""Bytes per read."""


class Start(Struct, frozen=True, kw_only=True, tag=True):
    """Start a worker."""

    number: int
    """Number of the worker in later messages."""
    job: str
    """Path of its job; see `worker.main`."""
    answer: str
    output: str
    """File for its standard output and error."""
    environment: dict[str, str]
    """Variables in addition to the server's."""


class End(Struct, frozen=True, kw_only=True, tag=True):
    """Kill a worker. It may have ended already."""

    number: int


Request = Start | End


class Ready(Struct, frozen=True, kw_only=True, tag=True):
    """The imports are done."""

    forks: bool
    """Whether workers are forked. If CUDA would not survive that, each is a new interpreter."""


class Ended(Struct, frozen=True, kw_only=True, tag=True):
    """A worker has ended, with all processes that it started."""

    number: int
    exit_code: int
    """Negative for the signal that killed it."""


Notice = Ready | Ended
