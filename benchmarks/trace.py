"""What `lorabench trace` takes as a whole process, for Llama-3.1-8B with QLoRA: 10 s and 1 GiB are the goals.

Run with `python benchmarks/trace.py [RUNS]` on a machine that has nothing else to do. The first run is not counted: it
compiles byte code and fetches files from the disk.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

TRACE = [sys.executable, "-m", "lorabench", "trace", "meta-llama/Llama-3.1-8B", "--method", "qlora"]


def seconds() -> tuple[float, float]:
    """Return the seconds of one trace, by the clock and of the processor."""
    clock, used = time.perf_counter(), os.times()
    subprocess.run(TRACE, check=True, capture_output=True)
    now = os.times()
    processor = now.children_user + now.children_system - used.children_user - used.children_system
    return time.perf_counter() - clock, processor


def main() -> None:
    """Measure and print the least and the most of each."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    clock, processor = zip(*[seconds() for _ in range(1 + runs)][1:], strict=True)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"wall clock    {min(clock):5.1f} to {max(clock):.1f} s (goal: at most 10 s)")
    print(f"processor     {min(processor):5.1f} to {max(processor):.1f} s")
    print(f"peak resident {memory / 1024:5.0f} MiB (goal: at most 1024 MiB)")


if __name__ == "__main__":
    main()
