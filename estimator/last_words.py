"""What a process has written to a file that nobody sees, shown if the process dies.

A process that dies cannot show it: C code may exit, abort or crash. So another process waits for its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MOST_LINES = 20


@contextmanager
def last_words(written: int) -> Iterator[None]:
    """Show the end of the file ``written``, a descriptor, on standard error if this process dies inside."""
    try:
        # A session of its own, so that an interrupt at the terminal leaves it waiting.
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(written)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[written],
            start_new_session=True,
        )
    except OSError:  # no process can be started here: go without
        yield
        return
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            watcher.communicate(b"lives")


def main(written: int) -> None:
    """Wait until the process that started this one says that it lives, or has died."""
    if sys.stdin.buffer.read(1):
        return
    said = os.pread(written, os.fstat(written).st_size, 0).decode(errors="replace").strip().splitlines()
    ending = "without a word of theirs" if not said else "and they wrote last:"
    head = f"lorabench: this process ended while libraries ran, {ending}"
    print(*[head, *said[-MOST_LINES:]], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]))
