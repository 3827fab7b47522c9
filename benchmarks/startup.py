"""What `lorabench estimate` costs as a whole process, against `python -c "import click"`: 3 times is the goal.

Run with `python benchmarks/startup.py [RUNS]`. The commands alternate, so that a busy machine slows all equally. Each
row is the median processor time of a process, user and system. Byte code is cached, as it is once pip has installed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from statistics import median

ESTIMATE = [sys.executable, "-m", "lorabench", "estimate", "llama-3.1-8b", "--method", "qlora"]
CLICK = "import click"
COMMANDS = {
    CLICK: [sys.executable, "-c", CLICK],
    "estimate --no-replay": [*ESTIMATE, "--no-replay"],
    "estimate": ESTIMATE,
    "estimate --gpu rtx-4090 --no-replay": [*ESTIMATE, "--gpu", "rtx-4090", "--no-replay"],
    "estimate --gpu rtx-4090": [*ESTIMATE, "--gpu", "rtx-4090"],
}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Return the processor seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure the commands and print their times and ratios."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as cache:
        kept = [key for key in os.environ if key == "PYTHONPATH" or not key.startswith("PYTHON")]
        environment = {key: os.environ[key] for key in kept}
        environment["PYTHONPYCACHEPREFIX"] = cache
        rounds = [[seconds(command, environment) for command in COMMANDS.values()] for _ in range(1 + runs)][1:]
    times = dict(zip(COMMANDS, map(median, zip(*rounds, strict=True)), strict=True))
    for name, taken in times.items():
        print(f"{name:36} {1000 * taken:6.0f} ms {taken / times[CLICK]:6.2f}")


if __name__ == "__main__":
    main()
