from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.closed_form.itemised import itemised_step
from lorabench.estimator.closed_form.ledger import Slot
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.step import peak_candidates
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.explanation import Derivation, Explanation, explain
from lorabench.estimator.explanation.letters import Widths
from lorabench.estimator.explanation.tensor_names import tensor_name
from lorabench.estimator.memory.allocator_settings import read_settings
from lorabench.estimator.memory.states import states
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.arithmetic import value_of
from tests.small_models import FAMILIES, small_model

RECIPES: list[tuple[str, dict[str, Any]]] = [
    ("meta-llama/Llama-3.1-8B", {}),
    ("meta-llama/Llama-3.1-8B", {"method": "qlora", "optim": "paged_adamw_8bit", "batch_size": 3}),
    ("meta-llama/Llama-3.1-8B", {"method": "full", "gradient_checkpointing": False}),
    ("mistralai/Mistral-7B-v0.1", {"method": "qlora", "prepare_kbit": False, "seq_len": 8192, "optim": "lion_8bit"}),
    ("Qwen/Qwen3-0.6B", {"method": "full", "optim": "adafactor", "gradient_accumulation": 2}),
    ("Qwen/Qwen2.5-0.5B", {"method": "qlora", "double_quant": False, "optim": "adamw_bnb_8bit", "seq_len": 128}),
    ("google/gemma-2-2b", {"attn_implementation": "eager", "loss": "legacy", "batch_size": 2}),
    ("openai-community/gpt2", {"gradient_accumulation": 2, "seq_len": 512, "optim": "sgd"}),
    ("EleutherAI/pythia-160m", {"method": "full", "dtype": "bfloat16", "mixed_precision": "no"}),
    ("microsoft/phi-4", {"adapter_dtype": "bfloat16", "gradient_checkpointing": False}),
    ("mistralai/Mixtral-8x7B-v0.1", {"target_modules": "attention", "optim": "lion_32bit"}),
    ("mistralai/Mixtral-8x7B-v0.1", {"method": "qlora", "lora_dropout": 0.0}),
    ("Qwen/Qwen3-30B-A3B", {"lora_dropout": 0.0, "gradient_checkpointing": False, "batch_size": 2}),
    ("meta-llama/Llama-3.2-1B", {"method": "full", "loss": "liger", "optim": "sgd", "gradient_checkpointing": False}),
    ("Qwen/Qwen3-30B-A3B", {"method": "full", "optim": "adamw_torch"}),
    (
        "meta-llama/Llama-3.1-8B",
        {"method": "qlora", "prepare_kbit": False, "modules_to_save": "embed_tokens,lm_head", "batch_size": 2},
    ),
    ("meta-llama/Llama-3.1-8B", {"method": "qlora", "recast": True, "modules_to_save": "lm_head"}),
    ("Qwen/Qwen2.5-0.5B", {"method": "full", "batch_size": 2, "loss": "legacy"}),  # sorts its tokens in backward
    ("facebook/opt-350m", {"method": "qlora"}),  # linear layers outside the decoder layers
    ("tiiuae/falcon-7b", {"method": "qlora"}),  # linear layers that stay in 16 bits
    ("EleutherAI/gpt-neo-125m", {"attn_implementation": "eager", "batch_size": 2}),  # buffers
]


def recipe_of(case: tuple[str, dict[str, Any]]) -> ResolvedRecipe:
    spec = find_model(case[0])
    return ResolvedRecipe(spec, make_recipe(spec.name, **case[1]))


def section(explanation: Explanation, title: str) -> Derivation:
    [found] = [section for section in explanation.sections if section.title == title]
    return found


@pytest.mark.parametrize("case", RECIPES, ids=lambda case: f"{case[0].split('/')[-1]}-{case[1].get('method', 'lora')}")
def test_the_lines_add_up_to_the_estimate(case: tuple[str, dict[str, Any]]) -> None:
    resolved = recipe_of(case)
    memory = estimate_memory(resolved)
    explanation = explain(resolved)
    said = {
        section.component: sum(line.bytes for line in section.lines)
        for section in explanation.sections
        if section.component
    }
    assert {name: said.get(name, 0) for name in memory.components} == memory.components
    phases = section(explanation, "Phases")
    assert {line.what: line.bytes for line in phases.lines} == memory.phase_peaks_bytes
    device = {line.what: line.bytes for line in section(explanation, "Allocator and device").lines}
    assert device["peak allocated"] == memory.peak_allocated_bytes
    assert device["device total"] == memory.device_total_bytes
    assert memory.peak_reserved_range_bytes is not None
    assert device["peak reserved, at most"] == memory.peak_reserved_range_bytes[1]
    assert memory.device_total_range_bytes is not None
    assert device["device total, at most"] == memory.device_total_range_bytes[1]


@pytest.mark.parametrize(
    "case",
    [*RECIPES[:3], ("openai-community/gpt2", {"gradient_accumulation": 2, "seq_len": 512, "optim": "adamw_torch"})],
    ids=lambda case: f"{case[0].split('/')[-1]}-{case[1].get('method', 'lora')}",
)
def test_segments_add_up_to_reserved_memory_and_their_gaps_to_what_is_free(case: tuple[str, dict[str, Any]]) -> None:
    resolved = recipe_of(case)
    estimate = estimate_recipe(resolved, replay=True)
    lines = section(explain(resolved, replayed=estimate), "Segments at the peak").lines
    allocated, reserved = estimate.memory.peak_allocated_bytes, estimate.memory.peak_reserved_bytes
    assert reserved is not None
    assert sum(line.bytes for line in lines) == reserved
    free = [int(line.source.removeprefix("free: ").removesuffix(" B").replace(",", "")) for line in lines]
    assert sum(free) == reserved - allocated
    assert all(value_of(line.values) == line.bytes for line in lines)
    assert {"weights"} < {line.what for line in lines}


def test_expandable_segments_have_no_sizes_of_their_own() -> None:
    resolved = recipe_of(RECIPES[0])
    estimate = estimate_recipe(resolved, replay=True, allocator=read_settings("expandable_segments:True"))
    assert not section(explain(resolved, replayed=estimate), "Segments at the peak").lines


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("backend", ["cuda", "cpu"])
def test_the_states_of_every_optimizer_are_taken_apart(optim: str, backend: Backend) -> None:
    """Adapters in float32, and a head in bfloat16."""
    options = {"modules_to_save": "lm_head", "optim": optim, "seq_len": 128}
    resolved = recipe_of(("openai-community/gpt2", options))
    kept = states(resolved, backend).optimizer.states
    lines = section(explain(resolved, backend), "Optimizer states").lines if kept else ()
    assert all(value_of(line.values) == line.bytes for line in lines)
    assert sum(line.bytes for line in lines) == kept
    assert len({line.what for line in lines}) == len(lines)


@pytest.mark.parametrize(("prepare", "itemsize"), [(True, 4), (False, 2)])
def test_experts_are_said_not_to_be_quantised(prepare: bool, itemsize: int) -> None:
    options = {"method": "qlora", "lora_dropout": 0.0, "prepare_kbit": prepare}
    [line] = [
        line
        for line in section(explain(recipe_of(("mistralai/Mixtral-8x7B-v0.1", options))), "Weights").lines
        if "experts" in line.what
    ]
    assert line.bytes == 32 * (8 * 3 * 4096 * 14336 + 8 * 4096) * itemsize
    assert "quantises linear layers, not stacked experts" in line.source


def test_adapters_of_experts_are_said_in_letters_with_the_rank_that_peft_doubles() -> None:
    """Mixtral-8x22B has as many tokens, 32768, as rows in a fused gate and up."""
    case: tuple[str, dict[str, Any]] = ("mistralai/Mixtral-8x22B-Instruct-v0.1", {"lora_dropout": 0.0, "rank": 8})
    said = {line.what: (line.formula, line.values) for line in section(explain(recipe_of(case)), "Adapters").lines}
    assert said["mlp.gate.weight"] == ("L · r · (h + E) · 4 B", "56 · 8 · 6,152 · 4")
    assert said["mlp.experts.gate_up_proj"] == ("L · 2 · E · r · (h + 2·f) · 4 B", "56 · 2 · 8 · 8 · 38,912 · 4")
    assert said["mlp.experts.down_proj"] == ("L · E · r · (f + h) · 4 B", "56 · 8 · 8 · 22,528 · 4")


@pytest.mark.parametrize("case", RECIPES, ids=lambda case: f"{case[0].split('/')[-1]}-{case[1].get('method', 'lora')}")
def test_every_line_is_the_product_that_it_states(case: tuple[str, dict[str, Any]]) -> None:
    for part in explain(recipe_of(case)).sections:
        for line in part.lines:
            assert line.what
            assert line.source
            assert value_of(line.values) == line.bytes


@pytest.mark.parametrize("case", RECIPES, ids=lambda case: f"{case[0].split('/')[-1]}-{case[1].get('method', 'lora')}")
def test_recording_a_step_changes_nothing_of_it(case: tuple[str, dict[str, Any]]) -> None:
    resolved = recipe_of(case)
    step = itemised_step(resolved, "cuda")
    assert step.candidates == peak_candidates(resolved, "cuda")
    for candidate, alive in zip(step.candidates, step.alive, strict=True):
        live = Counter[Slot]()
        for (slot, _), bytes_ in alive.items():
            live[slot] += bytes_
        assert live == Counter(candidate.live)


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_every_candidate_has_a_name_and_a_source(family: str, backend: Backend) -> None:
    """An explanation names only what is alive at its peak; another recipe peaks elsewhere."""
    spec = small_model(family)
    for method, attention, loss in (
        ("full", "eager", "standard"),
        ("lora", "sdpa", "legacy"),
        ("qlora", "flash_attention_2", "liger"),
    ):
        options = {"attn_implementation": attention, "loss": loss, "batch_size": 2, "gradient_accumulation": 2}
        recipe = make_recipe(spec.name, method=method, **options)
        step = itemised_step(ResolvedRecipe(spec, recipe), backend)
        items = {item for index in range(len(step.candidates)) for item in step.items(index)}
        shown = {"activations", "logits", "temporaries", "buffers", "gradients"}
        named = [tensor_name(item, recipe) for item in items if item.component in shown]
        assert all(name.what and name.source for name in named)


def test_the_mask_of_dropout_is_told_from_its_output_on_a_cpu_too() -> None:
    """On a CPU both have one dtype."""
    case: tuple[str, dict[str, Any]] = ("openai-community/gpt2", {"method": "full", "gradient_checkpointing": False})
    resolved = recipe_of(case)
    said = {line.what for part in explain(resolved, "cpu").sections for line in part.lines}
    assert {"residual stream, dropout mask", "embedding, dropout mask"} <= said


def test_the_terms_of_a_lora_step_are_named_with_their_formulas() -> None:
    explanation = explain(recipe_of(("meta-llama/Llama-3.1-8B", {})))
    lines = {line.what: line for part in explanation.sections for line in part.lines}
    assert lines["mlp.gate_proj"].formula == "L · r · (h + f) · 4 B"
    assert lines["mlp.gate_proj"].bytes == 32 * 16 * (4096 + 14336) * 4
    assert lines["first and second moments"].bytes == 2 * 41_943_040 * 4
    assert lines["loss, log-probabilities"].formula == "V · B·S · 4 B"
    assert lines["loss, log-probabilities"].bytes == 128_256 * 2048 * 4
    assert lines["residual stream, sum, input of the next sublayer"].bytes == 31 * 4096 * 2048 * 2
    assert lines["batch, token ids and labels, int64"].bytes == 2 * 2048 * 8


def test_4_bit_weights_are_taken_apart() -> None:
    resolved = recipe_of(("meta-llama/Llama-3.1-8B", {"method": "qlora"}))
    lines = section(explain(resolved), "Quantised weights").lines
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert [line.bytes for line in lines] == [linear // 2, linear // 64, linear // (64 * 256) * 4, 32 * 7 * 1092]


def test_what_checkpointing_drops_is_still_said() -> None:
    layer = "What one layer saves for backward"
    kept = section(explain(recipe_of(("meta-llama/Llama-3.1-8B", {"gradient_checkpointing": False}))), layer)
    dropped = section(explain(recipe_of(("meta-llama/Llama-3.1-8B", {}))), layer)
    assert kept.lines == dropped.lines
    assert "Gradient checkpointing keeps only each layer's input" in dropped.remark
    assert kept.remark == "256,360 B for each token."


@pytest.mark.parametrize("gpu", ["rtx-4090", "t4", "16GB"])
def test_the_margin_is_derived_from_the_gpu_s_memory(gpu: str) -> None:
    resolved = recipe_of(("meta-llama/Llama-3.1-8B", {"method": "qlora"}))
    device = find_device(gpu)
    estimate = estimate_recipe(resolved, device)
    explanation = explain(resolved, device=device)
    against = section(explanation, f"Against {device.name}")
    lines = {line.what: line for line in against.lines}
    assert lines["margin"].bytes == estimate.margin_bytes
    assert all(value_of(line.values) == line.bytes for line in against.lines)
    assert str(estimate.verdict) in against.remark
    assert section(explanation, "Workspaces").lines[0].bytes == estimate.memory.components["workspaces"]


def test_gradients_that_are_not_there_yet_are_said_to_come() -> None:
    gradients = section(explain(recipe_of(("meta-llama/Llama-3.1-8B", {}))), "Gradients")
    assert gradients.lines == ()
    assert "41,943,040 · 4 = 167,772,160 B" in gradients.remark


def test_widths_are_named_by_the_letters_of_the_model() -> None:
    widths = Widths(find_model("mistralai/Mistral-Nemo-Base-2407"))
    named = {5120: "h", 14336: "f", 4096: "qd", 1024: "kv", 131072: "V", 10240: "2·h", 512: "kv/2", 32: "H", 128: "d"}
    assert {width: widths.name(width) for width in named} == named
    assert widths.name(5120 * 14336) == "h·f"
    assert widths.name(12347) == "12,347"
