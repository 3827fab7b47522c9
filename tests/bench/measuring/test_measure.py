"""What is measured of real trainings of a tiny Llama on the CPU, each figure compared with another source of it."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabench.bench.measuring import measure as measuring
from lorabench.bench.measuring.measure import measure
from lorabench.bench.measuring.utilisation import Utilisation
from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.training.batches import make_batches
from lorabench.bench.training.losses import complaint_about_adapters
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.memory.breakdown import PHASES
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
from tests.saved_models import WORDS, save_with_tokenizer
from tests.small_models import TINY, small_config

pytestmark = pytest.mark.filterwarnings("ignore")

LLAMA = small_config("llama", **TINY)
SPEC = read_config(LLAMA, "test/llama")
METHODS = ("full", "lora", "qlora")


def recipe(**options: Any) -> Recipe:
    plain = {"dtype": "float32", "mixed_precision": "no", "batch_size": 2, "seq_len": 64, "optim": "adamw_torch"}
    return make_recipe("test/llama", **{**plain, **options})


def settings(**options: Any) -> Settings:
    asked = {"backend": "cpu", "steps": 4, "warmup_steps": 2, "least_seconds": 0.0, "seed": 5}
    return Settings(**{**asked, **options})


@cache
def measured(method: str) -> tuple[Recipe, Measurement]:
    one = recipe(method=method, gradient_accumulation=2)
    return one, measure(ResolvedRecipe(SPEC, one), settings(timeline=True))


@pytest.mark.parametrize("method", METHODS)
def test_each_phase_takes_what_the_estimate_says(method: str) -> None:
    one, told = measured(method)
    predicted = estimate_memory(ResolvedRecipe(SPEC, one), "cpu")
    assert list(told.memory.phase_peaks_bytes) == list(PHASES)
    for phase, peak in told.memory.phase_peaks_bytes.items():
        assert peak == pytest.approx(predicted.phase_peaks_bytes[phase], rel=0.02), phase
    assert sum(told.memory.components.values()) == told.memory.peak_allocated_bytes


@pytest.mark.parametrize("method", METHODS)
def test_peaks_of_building_and_evaluation_are_apart_from_those_of_training(method: str) -> None:
    _, told = measured(method)
    phases = told.memory.phase_peaks_bytes
    # A tiny model's largest layer, in full beside the codes of all: 64 · 300 weights of the head, never quantised.
    assert phases["adapted"] <= told.loading_peak_bytes <= phases["adapted"] + 4 * 64 * 300  # type: ignore[operator]
    # Weights and logits without anything kept for backward: bfloat16 or not, one copy at least.
    assert told.evaluation_peak_bytes is not None
    assert phases["adapted"] + 4 * 2 * 64 * 300 <= told.evaluation_peak_bytes < told.memory.peak_allocated_bytes
    assert told.rss_peak_bytes is None or told.rss_peak_bytes > told.memory.peak_allocated_bytes


@pytest.mark.parametrize("method", METHODS)
def test_the_timeline_rises_to_the_peak(method: str) -> None:
    _, told = measured(method)
    assert told.timeline is not None
    assert max(live for _, live in told.timeline) == told.memory.peak_allocated_bytes
    assert [when for when, _ in told.timeline] == sorted(when for when, _ in told.timeline)


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_timed_and_told(method: str) -> None:
    _, told = measured(method)
    assert len(told.step_seconds) >= 4
    assert 2 <= len(told.warmup_step_seconds) <= 2 + measuring.EXTRA_WARM_UP_STEPS
    assert len(told.losses) == len(told.gradient_norms) == 6
    assert all(norm is not None and norm > 0 for norm in told.gradient_norms)
    assert set(told.phase_seconds) == {"forward", "backward", "optimizer"}
    assert all(len(times) == measuring.PHASE_STEPS and min(times) > 0 for times in told.phase_seconds.values())


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_counted_three_ways(method: str) -> None:
    _, told = measured(method)
    assert told.tokens_per_step == told.unpadded_tokens_per_step == 2 * 2 * 64  # packed: nothing is padding
    assert told.loss_tokens_per_step == 2 * 2 * 63  # nothing predicts a row's first
    median = told.median_step_seconds
    assert (told.tokens_per_second, told.loss_tokens_per_second) == (256 / median, 252 / median)


def test_losses_are_those_of_a_loop_of_torchs_own() -> None:
    """LoRA, written out: no meter, no harness."""
    one, told = measured("lora")
    asked = settings()
    batches = make_batches(ResolvedRecipe(SPEC, one), asked, 6)
    model = build_model(ResolvedRecipe(SPEC, one), "cpu", seed=5)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-4)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    torch.manual_seed(5)
    losses, norms = [], []
    for number in range(6):
        mean = 0.0
        for batch in batches.of_step(number):
            loss = model(**batch).loss / 2
            loss.backward()
            mean += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean)
    assert told.losses == pytest.approx(losses, rel=1e-5)
    assert told.gradient_norms == pytest.approx(norms, rel=1e-4)
    model.eval()
    with torch.no_grad():
        held_out = [model(**batch).loss.item() for batch in batches.held_out()]
    assert told.held_out_loss_after == pytest.approx(sum(held_out) / len(held_out), rel=1e-5)


def test_training_lowers_the_loss_of_text_that_it_never_saw() -> None:
    _, told = measured("full")
    assert told.held_out_loss_before == pytest.approx(math.log(300), rel=0.05)  # it can only guess yet
    assert told.held_out_loss_after is not None
    assert told.held_out_loss_before is not None
    assert told.held_out_loss_after < told.held_out_loss_before


def test_losses_do_not_depend_on_how_long_steps_are_timed() -> None:
    one = recipe(method="lora", seq_len=16)
    short = measure(ResolvedRecipe(SPEC, one), settings(steps=2, warmup_steps=1))
    least = max(0.3, 10 * sum(short.step_seconds))
    long = measure(ResolvedRecipe(SPEC, one), settings(steps=2, warmup_steps=1, least_seconds=least))
    assert len(long.step_seconds) > len(short.step_seconds)
    assert (long.losses, long.gradient_norms) == (short.losses, short.gradient_norms)
    assert long.held_out_loss_after == short.held_out_loss_after


def test_a_run_whose_times_nobody_uses_trains_no_step_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabench.bench.measuring.measure.is_warm", lambda seconds: False)
    one = recipe(method="lora", seq_len=16)
    timed = measure(ResolvedRecipe(SPEC, one), settings(steps=1))
    untimed = measure(ResolvedRecipe(SPEC, one), settings(steps=1, timed=False))
    assert (len(timed.warmup_step_seconds), len(untimed.warmup_step_seconds)) == (2 + 10, 2)
    assert list(timed.phase_seconds) == ["forward", "backward", "optimizer"]
    assert untimed.phase_seconds == {}
    assert untimed.memory.phase_peaks_bytes == timed.memory.phase_peaks_bytes


def test_steps_before_the_optimizers_steady_step_are_a_warm_up() -> None:
    """Schedule-free RAdam updates no weight in its first four steps, and allocates less."""
    radam = recipe(seq_len=16, optim="schedule_free_radam")
    told = measure(ResolvedRecipe(SPEC, radam), settings(steps=1, warmup_steps=1, timed=False))
    assert len(told.warmup_step_seconds) == 4


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_that_have_learnt_nothing_leave_the_base_models_loss_alone(method: str) -> None:
    _, told = measured(method)
    assert told.base_loss == told.adapted_loss
    assert complaint_about_adapters(told.base_loss, told.adapted_loss) is None
    assert measured("full")[1].base_loss is None


def test_adapters_that_change_the_loss_at_once_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_badly(*arguments: Any, **options: Any) -> Any:
        model = build_model(*arguments, **options)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        return model

    monkeypatch.setattr(measuring, "build_model", build_badly)
    told = measure(ResolvedRecipe(SPEC, recipe(seq_len=16)), settings(steps=1, warmup_steps=0))
    complaint = complaint_about_adapters(told.base_loss, told.adapted_loss)
    assert str(complaint).startswith("untrained adapters changed the loss from 5.")


def test_a_cpu_says_nothing_of_gpus() -> None:
    _, told = measured("full")
    assert (told.mfu, told.hfu, told.energy_joules, told.nvml_device_peak_bytes) == (None, None, None, None)
    assert told.memory.peak_reserved_bytes is None


def test_utilisation_is_that_of_the_median_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an even number of steps that is the mean of the middle two, as for the tokens per second."""
    times = iter([[], [0.2, 0.1, 0.4, 0.8], []])
    monkeypatch.setattr(measuring, "timed_steps", lambda train_step, meter, count: next(times))
    monkeypatch.setattr(measuring, "utilisation", lambda resolved, device, seconds: Utilisation(mfu=seconds))
    told = measure(ResolvedRecipe(SPEC, recipe(seq_len=16)), settings(warmup_steps=0))
    assert told.mfu == told.median_step_seconds == pytest.approx(0.3)


def test_real_weights_train_on_their_own_tokens_in_4_bits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    spec = save_with_tokenizer(LLAMA, tmp_path)
    one = recipe(method="qlora", quant_type="fp4", double_quant=False, seq_len=16)
    asked = settings(steps=1, warmup_steps=0, weights=str(tmp_path))
    told = measure(ResolvedRecipe(spec, one), asked)
    assert told.parameters.quantized == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    batch = next(make_batches(ResolvedRecipe(spec, one), asked, 1).of_step(0))
    assert set(batch["input_ids"].flatten().tolist()) <= set(range(len(WORDS)))
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32
    )
    own = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, quantization_config=quantization)
    own.train()  # in evaluation, some CPUs get other kernels, which take no layer as small as these
    with torch.no_grad():
        assert told.base_loss == pytest.approx(own(**batch).loss.item(), rel=1e-5)
