"""Every row against a trace of the real optimizer's step."""

from __future__ import annotations

import pytest

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import small_model
from tests.traced_tensors import traced_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

RUNS: list[tuple[str, Backend]] = [
    *((name, "cuda") for name in OPTIMIZERS),
    *((name, "cpu") for name, optimizer in OPTIMIZERS.items() if not optimizer.paged),
]


@pytest.mark.parametrize(("optim", "backend"), RUNS)
@pytest.mark.parametrize("bits", [32, 16])
def test_a_step_takes_what_a_trace_of_it_takes(optim: str, backend: Backend, bits: int) -> None:
    """Adapters and a head of 128,000 weights in another dtype, so that states are in 8 bits, paged and neither."""
    spec = small_model("llama", vocab_size=1000, num_hidden_layers=2)
    half = "bfloat16" if "bfloat16" in OPTIMIZERS[optim].dtypes else "float16"
    recipe = make_recipe(
        spec.name,
        optim=optim,
        adapter_dtype="float32" if bits == 32 else half,
        modules_to_save="lm_head",
        dtype=half,
        rank=64,
        lora_dropout=0.0,
        seq_len=8,
    )
    traced, estimated = (
        traced_tensors(ResolvedRecipe(spec, recipe), backend),
        estimate_memory(ResolvedRecipe(spec, recipe), backend),
    )
    assert estimated.components["optimizer_states"] == traced.components["optimizer_states"]
    # What a trace has besides are rotary frequencies, and scalars such as gradients' norms.
    peaks = estimated.phase_peaks_bytes["optimizer"], traced.phase_peaks_bytes["optimizer"]
    assert peaks[0] == pytest.approx(peaks[1], abs=400)
