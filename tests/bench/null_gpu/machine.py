"""What tests need around null GPUs: processes that hold memory of a card, and a tiny model that trains there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.jobs import Job
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import TINY, small_config

MIB, GIB = 2**20, 2**30
CONFIG = small_config("llama", **{**TINY, "vocab_size": 2048})
SPEC = read_config(CONFIG, "test/llama")
HOLD = """
import ctypes, sys
gpu = ctypes.CDLL("libcuda.so.1")
free, total = ctypes.c_size_t(), ctypes.c_size_t()
assert gpu.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
whole_pages = (free.value - int(sys.argv[1])) >> 21 << 21
assert gpu.cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(whole_pages)) == 0
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_but_for(bytes_: int, variables: Mapping[str, str], gpu: int = 0) -> Iterator[None]:
    """Let another process take all memory of a card but ``bytes_`` of it."""
    environment = os.environ | dict(variables) | {"CUDA_VISIBLE_DEVICES": str(gpu)}
    command = [sys.executable, "-S", "-c", HOLD, str(bytes_)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.communicate()


def job(engine: Any = "lorabench", **recipe: Any) -> Job:
    """Return a job that trains the tiny model for a step on CUDA."""
    settings = Settings(backend="cuda", steps=1, warmup_steps=1, least_seconds=0.0, engine=engine)
    options = {"method": "lora", "seq_len": 64, "batch_size": 2, **recipe}
    return Job(resolved=ResolvedRecipe(SPEC, make_recipe("test/llama", **options)), settings=settings)
