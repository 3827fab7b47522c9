from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import trace
from tests.small_models import small_model

PROGRAM = """
import json, sys
from lorabench.estimator.training.libraries import import_libraries

import_libraries()
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import trace
from tests.small_models import small_model
import msgspec, torch

spec = small_model("mixtral")
memory = trace(ResolvedRecipe(spec, make_recipe(spec.name, method="qlora", lora_dropout=0.0, seq_len=64))).memory
imported = list(sys.modules)
import torch._inductor.utils
explains = callable(torch._dynamo.explain)
print(json.dumps({"memory": msgspec.to_builtins(memory), "imported": imported, "explains": explains}))
"""


@pytest.fixture(scope="module")
def said() -> Any:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_trace_imports_no_compiler_no_distributed_tensors_and_no_scipy(said: Any) -> None:
    brought = {"torch._dynamo.symbolic_convert", "torch._inductor", "torch.distributed.tensor", "scipy"}
    assert brought.isdisjoint(said["imported"])


def test_what_is_traced_without_them_is_what_is_traced_with_them(said: Any) -> None:
    import torch._dynamo.symbolic_convert

    assert torch.distributed.is_available()
    spec = small_model("mixtral")
    memory = trace(ResolvedRecipe(spec, make_recipe(spec.name, method="qlora", lora_dropout=0.0, seq_len=64))).memory
    assert msgspec.convert(said["memory"], Breakdown) == memory


def test_the_compiler_is_there_once_it_is_asked_for(said: Any) -> None:
    """As by optimizers whose kernels are written in Triton, which import the half of it that imports the other half."""
    assert said["explains"]
