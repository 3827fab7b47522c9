"""How fast `lorabench plan` searches: each search in a process of its own, as a command is.

Run with `python benchmarks/plan.py`. Without Python's own start, a search takes some seconds of processor time, most of
them for replays of the allocator.
"""

from __future__ import annotations

import subprocess
import sys

SEARCH = """
import time
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.answers.plan import make_plan
spec, device = find_model({model!r}), find_device({gpu!r})
start = time.process_time()
plan = make_plan(spec, device, {{}})
print(f"{{plan.tried:>7}} {{time.process_time() - start:>9.2f}} s")
"""
SEARCHES = [
    ("meta-llama/Llama-3.1-8B", "rtx-4090"),
    ("meta-llama/Llama-3.1-8B", "h100-sxm"),
    ("meta-llama/Llama-3.1-70B", "h100-sxm"),
    ("mistralai/Mistral-7B-v0.1", "l40s"),
    ("google/gemma-2-9b", "a100-sxm-80gb"),
    ("mistralai/Mixtral-8x7B-v0.1", "h200"),
]


def main() -> None:
    """Measure each search."""
    print(f"{'':43} {'tried':>7} {'processor':>11}")
    for model, gpu in SEARCHES:
        program = SEARCH.format(model=model, gpu=gpu)
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        print(f"{model:28} {gpu:14} {said}", end="")


if __name__ == "__main__":
    main()
