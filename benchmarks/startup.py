"""How long `lorabench estimate` takes as a whole process, against `python -c "import click"`: 3 times is the goal.

Run with `python benchmarks/startup.py [RUNS]`. The two alternate, so that a busy machine slows both equally, and the
least time of each counts: what is above it is the machine's. Byte code is cached, as it is once pip has installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

ESTIMATE = [sys.executable, "-m", "lorabench", "estimate", "meta-llama/Llama-3.1-8B", "--method", "qlora"]
CLICK = [sys.executable, "-c", "import click"]


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Return the wall-clock seconds of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Measure both commands and print their least times and the ratio."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as cache:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment["PYTHONPYCACHEPREFIX"] = cache
        pairs = [(seconds(ESTIMATE, environment), seconds(CLICK, environment)) for _ in range(1 + runs)][1:]
    estimate, click = (min(times) for times in zip(*pairs, strict=True))
    print(f"lorabench estimate  {1000 * estimate:6.0f} ms")
    print(f"import click        {1000 * click:6.0f} ms")
    print(f"ratio               {estimate / click:6.2f} (goal: at most 3)")


if __name__ == "__main__":
    main()
