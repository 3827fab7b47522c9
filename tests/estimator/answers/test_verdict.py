"""What is said of a GPU holds: one more does not fit, and every change that is named makes the recipe fit."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from lorabench.cli import main
from lorabench.estimator.answers.estimates import Estimate, estimate_recipe
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import DRIVER_BYTES, Device, find_device
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.reserved import reserve
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.quantities import in_gib
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import small_model

MIB, GIB = 2**20, 2**30
EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def gpu(memory_bytes: int, **known: Any) -> Device:
    return Device(name="gpu", title="a GPU", memory_bytes=memory_bytes, **known)


def held_against(device: Device, model: str, **options: Any) -> Estimate:
    spec = find_model(model)
    return estimate_recipe(ResolvedRecipe(spec, make_recipe(spec.name, **options)), device)


def test_the_range_goes_from_no_fragmentation_to_the_worst_seen() -> None:
    taken = reserve({"weights": 10 * GIB, "optimizer_states": GIB, "activations": 3 * GIB, "gradients": GIB - 1})
    assert taken.reserved == 15 * GIB
    assert taken.device_total == 15 * GIB + 1127 * MIB
    # Two workspaces of 8.125 MiB; 67 % of the 4 GiB that come and go and two workspaces of 33 MiB, 2744.32 + 66 MiB.
    assert taken.reserved_range == (15 * GIB + 18 * MIB, 15 * GIB + 2812 * MIB)
    assert taken.device_total_range == (15 * GIB + (18 + 141) * MIB, 15 * GIB + (2812 + 1127) * MIB)


def test_what_stays_throughout_does_not_fragment() -> None:
    low, high = reserve({"weights": 100 * GIB, "quantized_weights": 7, "adapters": 8}).reserved_range
    assert high - low == (66 + 2 - 18) * MIB  # the workspaces' range, in segments of 2 MiB


def test_a_cpu_has_no_ranges_and_older_breakdowns_still_decode() -> None:
    spec = small_model("llama")
    memory = estimate_memory(ResolvedRecipe(spec, make_recipe(spec.name)), "cpu")
    assert (memory.peak_reserved_range_bytes, memory.device_total_range_bytes) == (None, None)
    older = {"components": {}, "phase": "backward", "peak_allocated_bytes": 1, "phase_peaks_bytes": {}}
    assert msgspec.convert(older, Breakdown).device_total_range_bytes is None


def test_the_verdict_turns_at_the_upper_end_and_at_the_point() -> None:
    spec = find_model("llama-3.1-8b")
    recipe = make_recipe(spec.name, method="qlora")
    memory = estimate_memory(ResolvedRecipe(spec, recipe))
    assert memory.device_total_range_bytes is not None
    assert memory.device_total_bytes is not None
    upper, point = memory.device_total_range_bytes[1] + DRIVER_BYTES, memory.device_total_bytes
    said = {
        size: estimate_recipe(ResolvedRecipe(spec, recipe), gpu(size)) for size in (upper, upper - 1, point, point - 1)
    }
    assert [(estimate.verdict, estimate.fits) for estimate in said.values()] == [
        ("fits", True),
        ("tight", False),
        ("tight", False),
        ("does not fit", False),
    ]
    assert [estimate.margin_bytes for estimate in said.values()] == [0, -1, point - upper, point - 1 - upper]


@pytest.mark.parametrize(
    ("model", "size", "options"),
    [
        ("llama-3.1-8b", "24GB", {"method": "qlora"}),
        ("qwen2.5-0.5b", "rtx-4090", {"method": "full", "gradient_checkpointing": False}),
        ("mistral-7b-v0.1", "80GB", {"batch_size": 3, "seq_len": 4000, "attn_implementation": "sdpa"}),
        ("gemma-2b", "40GB", {"attn_implementation": "eager", "seq_len": 512}),
        ("gpt2", "24GB", {"seq_len": 64, "loss": "legacy"}),
    ],
)
def test_the_largest_batch_and_length_fit_and_the_next_do_not(model: str, size: str, options: dict[str, Any]) -> None:
    device = find_device(size)
    estimate = held_against(device, model, **options)
    batch, length, limit = estimate.largest_batch_size, estimate.longest_seq_len, estimate.max_position_embeddings
    assert batch is not None
    assert length is not None
    assert limit is not None
    assert held_against(device, model, **{**options, "batch_size": batch}).fits
    assert not held_against(device, model, **{**options, "batch_size": batch + 1}).fits
    assert length % 128 == 0
    assert held_against(device, model, **{**options, "seq_len": length}).fits
    assert length + 128 > limit or not held_against(device, model, **{**options, "seq_len": length + 128}).fits


def test_the_longest_sequence_stops_where_the_model_does() -> None:
    estimate = held_against(gpu(200 * GIB), "pythia-160m", seq_len=64)
    assert estimate.longest_seq_len == estimate.max_position_embeddings == 2048


@pytest.mark.parametrize(
    ("model", "size", "options"),
    [
        ("llama-3.1-8b", "16GB", {"method": "qlora", "prepare_kbit": True}),
        ("llama-3.1-8b", "24GB", {"method": "full"}),
        ("llama-3.1-8b", "80GB", {"method": "full"}),
        ("llama-3.1-8b", "24GB", {"batch_size": 4, "gradient_checkpointing": False}),
        ("mistral-7b-v0.1", "t4", {"dtype": "float16", "mixed_precision": "fp16"}),
        ("gpt2-xl", "24GB", {"method": "full", "seq_len": 1024, "batch_size": 8, "optim": "lion_32bit"}),
        ("qwen2.5-7b", "48GB", {"batch_size": 16, "seq_len": 4096}),
    ],
)
def test_every_change_named_makes_it_fit(model: str, size: str, options: dict[str, Any]) -> None:
    device = find_device(size)
    estimate = held_against(device, model, **options)
    assert not estimate.fits
    assert 1 <= len(estimate.changes) <= 3
    for change in estimate.changes:
        assert change.device_total_most_bytes <= device.memory_bytes - DRIVER_BYTES
        settings = {name: value for name, value in change.settings.items() if name not in EXPANDABLE}
        changed = held_against(device, model, **{**options, **settings})
        assert changed.memory.device_total_range_bytes is not None
        if change.settings == settings:
            assert changed.fits
            assert changed.memory.device_total_range_bytes[1] == change.device_total_most_bytes
        else:
            assert change.settings == {**settings, **EXPANDABLE}
            assert changed.memory.device_total_range_bytes[1] > change.device_total_most_bytes


def settings_of(device: Device, model: str, **options: Any) -> list[dict[str, Any]]:
    return [change.settings for change in held_against(device, model, **options).changes]


def test_a_loop_that_keeps_its_outputs_can_drop_them() -> None:
    changes = settings_of(find_device("25GB"), "llama-3.2-3b", batch_size=3, keep_outputs=True)
    assert {"keep_outputs": False} in changes


def test_harmless_changes_come_first_and_pairs_only_where_no_single_change_is_enough() -> None:
    assert settings_of(find_device("84GB"), "llama-3.1-8b", method="full") == [
        {"optim": "paged_adamw_8bit"},
        {"dtype": "bfloat16"},
        {"method": "lora", "dtype": "bfloat16"},
    ]
    pairs = settings_of(find_device("24GB"), "llama-3.1-8b", batch_size=4, gradient_checkpointing=False)
    assert pairs[0] == {"gradient_checkpointing": True, "batch_size": 1, "gradient_accumulation": 4}
    assert settings_of(find_device("24GB"), "llama-3.1-70b") == []
    assert settings_of(find_device("80GB"), "llama-3.1-8b") == []


def test_a_batch_is_accumulated_to_the_same_size() -> None:
    changes = settings_of(find_device("24GB"), "qwen2.5-1.5b", batch_size=8, gradient_accumulation=2)
    (accumulated,) = [settings for settings in changes if "batch_size" in settings]
    assert accumulated == {"batch_size": 1, "gradient_accumulation": 16}


def test_a_fused_loss_is_named_where_liger_has_one_and_spares_the_logits() -> None:
    options = {"batch_size": 16, "seq_len": 1024}
    device = gpu(44 * GIB)
    assert {"loss": "liger"} in settings_of(device, "llama-3.1-8b", **options)
    assert not any("loss" in settings for settings in settings_of(device, "llama-3.1-8b", **options, loss="liger"))
    assert not any("loss" in settings for settings in settings_of(gpu(8 * GIB), "pythia-1b", batch_size=32))
    before = held_against(device, "llama-3.1-8b", **options).memory.device_total_range_bytes
    (fused,) = [
        change
        for change in held_against(device, "llama-3.1-8b", **options).changes
        if change.settings == {"loss": "liger"}
    ]
    assert before is not None
    # Logits, their gradient and log-softmax, float32 each, of 16,384 tokens; a layer's backward peaks in their stead.
    assert before[1] - fused.device_total_most_bytes > 8 * 16_384 * 128_256


def test_a_prepared_qlora_is_told_to_leave_the_preparation_out() -> None:
    """Llama-3.1-70B: its embedding and head are 2.1 billion weights, which preparation raises to float32."""
    options = {"method": "qlora", "seq_len": 512, "loss": "liger"}
    prepared = held_against(gpu(48 * GIB), "llama-3.1-70b", **options, prepare_kbit=True)
    (change,) = [change for change in prepared.changes if change.settings == {"prepare_kbit": False}]
    assert prepared.memory.device_total_range_bytes is not None
    assert prepared.memory.device_total_range_bytes[1] - change.device_total_most_bytes > 2 * 2 * 128_256 * 8192
    for others in ({"prepare_kbit": False}, {"method": "lora"}):
        named = settings_of(gpu(40 * GIB), "llama-3.1-70b", **{**options, **others})
        assert not any("prepare_kbit" in settings for settings in named)


def test_a_gpu_that_bitsandbytes_does_not_run_on_is_not_told_to_use_it() -> None:
    for options in ({"method": "full"}, {"method": "lora", "seq_len": 512}):
        size = 40 if options["method"] == "full" else 12
        with_it = settings_of(gpu(size * GIB), "llama-3.1-8b", **options)
        without = settings_of(gpu(size * GIB, supports_bitsandbytes=False), "llama-3.1-8b", **options)
        assert any(settings.get("method") == "qlora" for settings in with_it)
        assert not any(settings.get("method") == "qlora" or "optim" in settings for settings in without)


def test_a_change_leaves_every_other_setting_alone() -> None:
    spec = find_model("llama-3.1-8b")
    recipe = make_recipe(spec.name, rank=64, target_modules="attention", lora_dropout=0.2, seq_len=512)
    estimate = estimate_recipe(ResolvedRecipe(spec, recipe), gpu(14 * GIB))
    changes = {change.settings["method"]: change for change in estimate.changes if "method" in change.settings}
    assert changes["qlora"].settings == {"method": "qlora"}
    quantized: Recipe = make_recipe(**{**recipe.settings(), "method": "qlora"})
    memory = estimate_memory(ResolvedRecipe(spec, quantized))
    assert memory.device_total_range_bytes is not None
    assert changes["qlora"].device_total_most_bytes == memory.device_total_range_bytes[1]


def test_require_fit_wants_more_than_tight(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "estimate",
        "llama-3.1-8b",
        "--method",
        "qlora",
        "--prepare-kbit",
        "--gpu",
        "16GB",
        "--no-replay",
        "--format",
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "json", "--require-fit"])
    said = json.loads(capsys.readouterr().out)
    assert (stopped.value.code, said["verdict"], said["fits"]) == (1, "tight", False)
    assert said["changes"][0]["settings"] == EXPANDABLE
    for format_ in ("table", "markdown"):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, format_])
        out = capsys.readouterr().out
        assert stopped.value.code == 0
        assert "Tight on 16GB: at most " in out
        assert "15.25 of 16.00 GiB are usable" in out
        assert "to replay the allocator for this recipe, leave out --no-replay" in " ".join(out.split())
        takes = f"at most {in_gib(said['changes'][0]['device_total_most_bytes'])}"
        assert f"fits with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: {takes}" in " ".join(out.split())
        assert "(model limit: 131072)" in out


def replayed(memory_bytes: int, **options: Any) -> Estimate:
    spec = find_model("llama-3.2-1b")
    return estimate_recipe(ResolvedRecipe(spec, make_recipe(spec.name, **options)), gpu(memory_bytes), replay=True)


FRAGMENTS = {"method": "full", "optim": "adamw_torch", "dtype": "bfloat16", "mixed_precision": "no"}
CONTEXT = 1127 * MIB
"""The largest that is published, for a GPU of which only the memory is known."""


def test_the_allocator_decides_what_fits_and_gives_cached_memory_back_before_it_fails() -> None:
    memory = replayed(80 * GIB, **FRAGMENTS).memory
    assert memory.peak_reserved_bytes is not None
    assert memory.peak_reserved_bytes - memory.peak_allocated_bytes > GIB
    roomy = memory.peak_reserved_bytes + CONTEXT + DRIVER_BYTES
    cramped = (memory.peak_reserved_bytes + memory.peak_allocated_bytes) // 2 + CONTEXT + DRIVER_BYTES
    too_small = memory.peak_allocated_bytes + DRIVER_BYTES
    assert [
        (one.verdict, one.margin_bytes) for one in (replayed(roomy, **FRAGMENTS), replayed(cramped, **FRAGMENTS))
    ] == [
        ("fits", 0),
        ("fits", 0),
    ]
    assert replayed(roomy + 7, **FRAGMENTS).margin_bytes == 7
    failed = replayed(too_small, **FRAGMENTS)
    assert failed.verdict == "does not fit"
    assert failed.margin_bytes is not None
    assert failed.margin_bytes < 0


def test_tight_is_what_the_size_of_the_context_decides() -> None:
    memory = replayed(80 * GIB, method="lora", batch_size=2).memory
    assert memory.peak_reserved_bytes is not None
    with_a_smaller_context = memory.peak_reserved_bytes + 400 * MIB + DRIVER_BYTES
    assert replayed(with_a_smaller_context, method="lora", batch_size=2).verdict in ("tight", "fits")
    assert replayed(memory.peak_allocated_bytes + 140 * MIB + DRIVER_BYTES, method="lora", batch_size=2).fits is False


def test_what_is_named_as_largest_runs_and_one_more_does_not() -> None:
    estimate = replayed(24 * GIB, method="lora")
    batch, length = estimate.largest_batch_size, estimate.longest_seq_len
    assert batch is not None
    assert length is not None
    assert replayed(24 * GIB, method="lora", batch_size=batch).fits
    assert not replayed(24 * GIB, method="lora", batch_size=batch + 1).fits
    assert replayed(24 * GIB, method="lora", seq_len=length).fits
    assert not replayed(24 * GIB, method="lora", seq_len=length + 128).fits
