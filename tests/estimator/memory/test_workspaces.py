"""What cuBLAS works in is among the allocated bytes, alike in estimate and trace; it depends on the GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorabench.cli import main
from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.memory_grid import estimate_memory_grid
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.memory.reserved import reserve
from lorabench.estimator.memory.workspaces import workspaces
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import trace
from tests.small_models import small_model

MIB = 2**20
EARLIER = 8 * MIB + 128 * 2**10  # :4096:2:16:8, in KiB and numbers


@pytest.mark.parametrize(
    ("gpu", "each"), [("a100-sxm-80gb", EARLIER), ("rtx-4090", EARLIER), ("h100-sxm", 32 * MIB), ("b200", 32 * MIB)]
)
def test_two_threads_have_one_each_from_the_first_step_on(gpu: str, each: int) -> None:
    spec = small_model("llama")
    memory = estimate_recipe(ResolvedRecipe(spec, make_recipe(spec.name)), find_device(gpu)).memory
    assert memory.components["workspaces"] == 2 * each
    plain = estimate_memory(ResolvedRecipe(spec, make_recipe(spec.name)))
    assert plain.components["workspaces"] == 2 * EARLIER
    more = 2 * (each - EARLIER)
    assert memory.phase_peaks_bytes == {
        phase: peak + more * (phase not in ("loaded", "adapted")) for phase, peak in plain.phase_peaks_bytes.items()
    }
    assert (
        plain.phase_peaks_bytes["adapted"]
        == estimate_memory(ResolvedRecipe(spec, make_recipe(spec.name)), "cpu").phase_peaks_bytes["adapted"]
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compute_capability", [None, "9.0"])
def test_the_trace_has_them_too(compute_capability: str | None) -> None:
    spec = small_model("llama")
    recipe = make_recipe(spec.name, seq_len=128, batch_size=2)
    traced = trace(ResolvedRecipe(spec, recipe), compute_capability=compute_capability)
    estimated = estimate_memory(ResolvedRecipe(spec, recipe), compute_capability=compute_capability)
    assert traced.memory.components["workspaces"] == estimated.components["workspaces"]
    assert traced.memory.peak_requested_bytes == pytest.approx(estimated.peak_allocated_bytes, rel=1e-3)
    (listed,) = [tensors for tensors in traced.tensors if tensors.component == "workspaces"]
    assert (listed.count, listed.bytes) == (2, workspaces(compute_capability).bytes)
    assert trace(ResolvedRecipe(spec, recipe), backend="cpu").memory.components["workspaces"] == 0


def test_arrays_have_those_of_the_gpu() -> None:
    spec = small_model("llama")
    recipe = make_recipe(spec.name, batch_size=3)
    (peak,) = estimate_memory_grid(
        ResolvedRecipe(spec, recipe), np.array([3]), recipe.seq_len, compute_capability="9.0"
    )
    assert peak == estimate_memory(ResolvedRecipe(spec, recipe), compute_capability="9.0").peak_allocated_bytes


@pytest.mark.parametrize("compute_capability", [None, "7.5", "8.9", "9.0", "10.0", "12.0", "gfx90a", "gfx942"])
def test_ranges_hold_what_torch_s_versions_and_unknown_gpus_take(compute_capability: str | None) -> None:
    least, point, most = workspaces(compute_capability)
    assert 2 * EARLIER <= least <= point < most
    taken = reserve({"weights": 10**9, "workspaces": point}, compute_capability=compute_capability)
    low, high = taken.reserved_range
    assert low <= taken.reserved <= high
    assert high - low == pytest.approx(most - least, abs=2 * MIB)
    if compute_capability is None:
        for known in ("8.0", "9.0", "12.0"):
            assert least <= workspaces(known).least <= workspaces(known).most <= most


def test_a_trace_takes_a_gpu_s_name_and_refuses_one_beside_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ([], 0), (["--backend", "cpu"], 2):
        with pytest.raises(SystemExit) as stopped:
            main(["trace", "demo-llama", "--seq-len", "16", "--gpu", "h100-sxm", "--format", "json", *arguments])
        assert stopped.value.code == code
        if code == 0:
            assert json.loads(capsys.readouterr().out)["memory"]["components"]["workspaces"] == 64 * MIB
    assert "--gpu does not apply to --backend cpu" in capsys.readouterr().err
