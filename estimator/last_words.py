"""Show the hidden output of a process if the process dies.

The process itself cannot show it, since C code may exit, abort or crash. So another process waits for its end.
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
    """Return a context: if this process dies inside, the end of file ``written`` (a descriptor) goes to stderr."""
    try:
        # In a new session, an interrupt at the terminal does not end it.
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(written)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[written],
            start_new_session=True,
        )
    except OSError:  # no process can be started here
        yield
        return
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            watcher.communicate(b"lives")


def main(written: int) -> None:
    """Wait until the parent process reports that it is alive, or dies. If it died, show the end of its output."""
    if sys.stdin.buffer.read(1):
        return
    said = os.pread(written, os.fstat(written).st_size, 0).decode(errors="replace").strip().splitlines()
    # As foreign_text.printable, which a process of its own cannot import.
    said = ["".join(char if char.isprintable() else "\ufffd" for char in line) for line in said]
    ending = "without any output of theirs" if not said else "and their last output was:"
    head = f"lorabench: this process ended while libraries ran, {ending}"
    print(*[head, *said[-MOST_LINES:]], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]))
