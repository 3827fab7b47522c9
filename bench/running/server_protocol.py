"""What the runner asks of the server that workers are forked from, and what that tells: a line of JSON each."""

from __future__ import annotations

from msgspec import Struct

READ_BYTES = 2**16
"""To read at once."""


class Start(Struct, frozen=True, kw_only=True, tag=True):
    """Ask for a worker."""

    number: int
    """By which it is called from then on."""
    job: str
    """Path of its job; see `worker.main`."""
    answer: str
    said: str
    """Path of the file that takes its standard output and error."""
    environment: dict[str, str]
    """Variables that it has besides the server's."""


class End(Struct, frozen=True, kw_only=True, tag=True):
    """Ask that a worker be killed; one that has ended already is no mistake."""

    number: int


Request = Start | End


class Ready(Struct, frozen=True, kw_only=True, tag=True):
    """The imports are done."""

    forks: bool
    """Whether workers are forked; otherwise CUDA would not survive that, and each is started afresh."""


class Ended(Struct, frozen=True, kw_only=True, tag=True):
    """A worker has ended, and all that it had started with it."""

    number: int
    exit_code: int
    """Negative for the signal that killed it."""


Notice = Ready | Ended
