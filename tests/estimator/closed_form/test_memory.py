"""The closed form against real steps on the CPU, and what must hold of every estimate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.memory.breakdown import COMPONENTS, Breakdown
from lorabench.estimator.memory.states import states
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.optimizers.states import Blockwise
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.recipe import CHOICES, Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.storages import StorageLedger
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import TrainingStep
from tests.small_models import FAMILIES, MIXTURES, small_model

pytestmark = pytest.mark.filterwarnings("ignore")


def measure(resolved: ResolvedRecipe) -> Breakdown:
    """Return the breakdown of the second of two real steps on the CPU."""
    spec, recipe = resolved.spec, resolved.recipe
    model = build_model(resolved, "cpu")
    optimizer = make_optimizer(model, recipe)
    ledger = StorageLedger("cpu")
    ledger.adopt_model(model)
    tokens = torch.randint(0, spec.vocab_size, (recipe.batch_size, recipe.seq_len))
    batches = [{"input_ids": tokens, "labels": tokens.clone()} for _ in range(recipe.gradient_accumulation)]
    for batch in batches:
        ledger.adopt("buffers", *batch.values())
    with ledger:
        ledger.watch_model(model, spec.vocab_size)
        step = TrainingStep(model, optimizer, recipe, ledger.begin_phase)
        for _ in range(2):
            ledger.begin_step()
            step(batches)
        ledger.end_step(model, optimizer)
    return ledger.breakdown()


WITHOUT_IA3_TARGETS = ("granite", "olmo2", "phi3", "qwen3_moe")
"""Families of which peft names no linear layers for IA3; `test_defaults` has what is said then."""
MODELS = {
    **{name: find_model(f"lorabench/{name}") for name in ("demo-llama", "demo-gpt2")},
    **{family: small_model(family) for family in FAMILIES if family not in ("llama", "gpt2")},
}
CASES = [
    (model, method, checkpointing)
    for model in MODELS
    for method in CHOICES["method"]
    for checkpointing in ((False, True) if model.startswith("demo") else (method != "full",))
    if method != "ia3" or MODELS[model].model_type not in WITHOUT_IA3_TARGETS
]


@pytest.mark.parametrize(("model", "method", "gradient_checkpointing"), CASES)
def test_the_estimated_peak_on_a_cpu_is_the_measured_one(model: str, method: str, gradient_checkpointing: bool) -> None:
    spec = MODELS[model]
    recipe = make_recipe(
        spec.name,
        method=method,
        gradient_checkpointing=gradient_checkpointing,
        batch_size=2,
        seq_len=64,  # bfloat16 is slow on most CPUs
        attn_implementation="eager" if model == "gemma2" else "sdpa",
        lora_dropout=0.0 if model in MIXTURES and method in ("lora", "qlora") else None,  # experts' adapters have none
    )
    measured = measure(ResolvedRecipe(spec, recipe))
    estimated = estimate_memory(ResolvedRecipe(spec, recipe), "cpu")
    assert estimated.peak_allocated_bytes == pytest.approx(measured.peak_allocated_bytes, rel=0.01)


@st.composite
def recipes(draw: st.DrawFn) -> tuple[ModelSpec, Recipe]:
    family = draw(st.sampled_from(list(FAMILIES)))
    method = draw(st.sampled_from(["full", "lora", "qlora"]))
    options: dict[str, Any] = {
        "method": method,
        "dtype": draw(st.sampled_from(CHOICES["dtype"])),
        "mixed_precision": draw(st.sampled_from(["no", "bf16"])),
        "optim": draw(st.sampled_from(CHOICES["optim"])),
        "batch_size": draw(st.integers(1, 9)),
        "seq_len": draw(st.integers(1, 3000)),
        "gradient_accumulation": draw(st.integers(1, 3)),
        "gradient_checkpointing": draw(st.booleans()),
        "attn_implementation": draw(st.sampled_from(CHOICES["attn_implementation"])),
        "loss": draw(st.sampled_from(["standard", "legacy"])),
    }
    if method != "full":
        targets = ["all-linear", "attention", *([] if family in MIXTURES else ["mlp"])]
        options |= {
            "rank": draw(st.integers(1, 128)),
            "lora_dropout": draw(st.sampled_from([0.0, 0.1])),
            "adapter_dtype": draw(st.sampled_from(CHOICES["adapter_dtype"])),
            "target_modules": draw(st.sampled_from(targets)),
        }
    if method == "qlora":
        options |= {"double_quant": draw(st.booleans()), "prepare_kbit": draw(st.booleans())}
    spec = small_model(family)
    return spec, make_recipe(spec.name, **options)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    return make_recipe(**{**recipe.settings(), **changes})


@given(recipes())
@settings(max_examples=60)
def test_components_add_up_to_the_peak_and_the_peak_is_a_phases(given_: tuple[ModelSpec, Recipe]) -> None:
    memory = estimate_memory(ResolvedRecipe(*given_))
    assert list(memory.components) == list(COMPONENTS)
    assert min(memory.components.values()) >= 0
    assert sum(memory.components.values()) == memory.peak_allocated_bytes
    assert memory.phase_peaks_bytes[memory.phase] == max(memory.phase_peaks_bytes.values())
    assert memory.phase_peaks_bytes[memory.phase] == memory.peak_allocated_bytes
    assert memory.peak_reserved_bytes is not None
    assert memory.device_total_bytes is not None
    assert memory.peak_allocated_bytes <= memory.peak_reserved_bytes < memory.device_total_bytes


def test_what_is_loaded_grows_by_preparation_and_adapters() -> None:
    """Llama-3.1-8B: 8,030,261,248 weights, 1,050,939,392 not in linear layers; 41,943,040 in adapters."""
    spec = find_model("meta-llama/Llama-3.1-8B")
    phases = {
        (method, prepared): estimate_memory(
            ResolvedRecipe(spec, make_recipe(spec.name, method=method, prepare_kbit=prepared))
        ).phase_peaks_bytes
        for method, prepared in (("full", None), ("lora", None), ("qlora", False), ("qlora", True))
    }
    adapters = 4 * 41_943_040
    assert phases["full", None]["loaded"] == phases["full", None]["adapted"] == 4 * 8_030_261_248
    assert phases["lora", None]["loaded"] == 2 * 8_030_261_248
    assert phases["lora", None]["adapted"] - phases["lora", None]["loaded"] == adapters
    plain, prepared = phases["qlora", False], phases["qlora", True]
    assert plain["loaded"] == prepared["loaded"] == pytest.approx(2 * 1_050_939_392 + 0.5159 * 6_979_321_856, rel=1e-4)
    assert plain["adapted"] - plain["loaded"] == adapters
    assert prepared["adapted"] - prepared["loaded"] == adapters + 2 * 1_050_939_392


@given(recipes())
@settings(max_examples=60)
def test_an_estimate_is_never_below_what_is_held_in_the_optimizer_step(given_: tuple[ModelSpec, Recipe]) -> None:
    spec, recipe = given_
    held = states(ResolvedRecipe(spec, recipe), "cuda")
    batch = 2 * 8 * recipe.tokens  # token ids and labels
    everything = sum(term.bytes for term in held.terms) + held.optimizer.temporaries + batch
    memory = estimate_memory(ResolvedRecipe(spec, recipe))
    assert memory.peak_allocated_bytes >= memory.phase_peaks_bytes["optimizer"] >= everything - batch


@given(recipes(), st.sampled_from(["batch_size", "seq_len", "rank"]), st.integers(1, 64))
@settings(max_examples=120)
def test_more_of_anything_never_takes_less(given_: tuple[ModelSpec, Recipe], field: str, more: int) -> None:
    spec, recipe = given_
    value = getattr(recipe, field)
    kinds = [state for state in OPTIMIZERS[recipe.optim].states if isinstance(state, Blockwise)]
    if value is None or (field == "rank" and any(kind.bits == 8 or kind.paged for kind in kinds)):
        return  # the states of large tensors are in 8 bits, or paged: a larger rank may then take less
    larger = estimate_memory(ResolvedRecipe(spec, changed(recipe, **{field: value + more})))
    assert larger.peak_allocated_bytes >= estimate_memory(ResolvedRecipe(spec, recipe)).peak_allocated_bytes


@given(recipes())
@settings(max_examples=40)
def test_names_and_alpha_change_nothing(given_: tuple[ModelSpec, Recipe]) -> None:
    spec, recipe = given_
    other = changed(recipe, model="another/name", lora_alpha=None if recipe.adapter is None else 3.0)
    assert estimate_memory(ResolvedRecipe(spec, other)) == estimate_memory(ResolvedRecipe(spec, recipe))
