"""What starting a worker costs a recipe: forked from the server, against a fresh interpreter with the same imports.

Run with `python benchmarks/worker_start.py [RUNS]`. The job names a dataset that is not there, so that a worker reads
it, imports what training needs, is refused and answers: all that a recipe waits for besides its own work. The goal is
well under a second.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.jobs import Job
from lorabench.bench.running.server import PRELOAD
from lorabench.bench.running.workers import Workers
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

SPEC = find_model("lorabench/demo-llama")
JOB = Job(
    resolved=ResolvedRecipe(SPEC, make_recipe(SPEC.name)),
    settings=Settings(backend="cpu", steps=1, warmup_steps=0, dataset="/nonexistent/text.txt"),
)


def forked_seconds(workers: Workers) -> float:
    """Return the seconds from asking for a worker to its answer."""
    begun = time.perf_counter()
    number = workers.start(JOB, {})
    while True:
        answers = workers.wait(10)
        if number in answers:
            assert "cannot read the dataset" in str(answers[number].message)
            return time.perf_counter() - begun


def fresh_seconds() -> float:
    """Return the seconds of an interpreter that makes the same imports and ends."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import " + ", ".join(PRELOAD)], check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure both and print their medians."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as scratch, Workers(Path(scratch)) as workers:
        first = forked_seconds(workers)
        forked = [forked_seconds(workers) for _ in range(runs)]
    fresh = [fresh_seconds() for _ in range(3)]
    print(f"server and first worker  {first:7.3f} s")
    print(f"each worker after that   {median(forked):7.3f} s (median of {runs}; most {max(forked):.3f} s)")
    print(f"a fresh interpreter      {median(fresh):7.3f} s (median of 3)")


if __name__ == "__main__":
    main()
