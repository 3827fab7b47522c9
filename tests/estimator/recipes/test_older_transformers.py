"""Older series of transformers: what their code allocates, counted by rehearsals with those versions installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorabench.cli import main
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.closed_form.sizes import EXPERT_TOKENS, Values
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.states import states
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import make_recipe

RECORDS = json.loads((Path(__file__).parents[1] / "rehearsed_by_older_transformers.json").read_text())


def named(record: dict[str, Any]) -> str:
    recipe = record["recipe"]
    return f"{recipe['transformers']}-{recipe['model'].rpartition('/')[2]}-{recipe['method']}-{recipe['batch_size']}"


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_an_older_series_allocates_what_a_rehearsal_with_it_counts(record: dict[str, Any]) -> None:
    """`benchmarks/older_transformers/rehearse.py` makes the records."""
    device, settings = find_device(record["gpu"]), {"use_reentrant": False, **record["recipe"]}
    spec = read_config(record["model_config"], settings.pop("model"))
    resolved = recipe_for(spec, **settings)
    capability = device.compute_capability
    requested = estimate_memory(resolved, compute_capability=capability).peak_allocated_bytes
    assert requested == pytest.approx(record["requested"], rel=1e-5)
    replayed = Training(resolved, capability, device.multiprocessors).replay()
    assert replayed.allocated == pytest.approx(record["allocated"], rel=0.002)


def test_all_series_were_rehearsed() -> None:
    assert {record["recipe"]["transformers"] for record in RECORDS} == {"4.45", "4.48", "4.57"}


LLAMA = "meta-llama/Llama-3.1-8B"


def test_before_version_5_checkpointing_is_reentrant_unless_one_says_otherwise() -> None:
    spec = find_model(LLAMA)
    older = recipe_for(spec, transformers="4.48")
    assert older.recipe.use_reentrant
    assert "use_reentrant yes instead of no: the default of transformers 4.48" in older.assumptions
    assert not recipe_for(spec, transformers="4.48", use_reentrant=False).recipe.use_reentrant
    assert not recipe_for(spec, transformers="4.48", gradient_checkpointing=False).recipe.use_reentrant
    assert not recipe_for(spec, transformers="5").recipe.use_reentrant


def test_version_5_is_what_a_recipe_means_anyway() -> None:
    assert make_recipe(LLAMA, transformers="5") == make_recipe(LLAMA)


@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2"])
def test_the_loss_of_4_48_is_the_one_called_legacy(implementation: str) -> None:
    """With many tokens the loss decides the peak, which attention does not change."""
    spec, options = find_model(LLAMA), {"attn_implementation": implementation, "use_reentrant": True, "batch_size": 4}
    legacy, older = recipe_for(spec, loss="legacy", **options), recipe_for(spec, transformers="4.48", **options)
    assert estimate_memory(older).peak_allocated_bytes == estimate_memory(legacy).peak_allocated_bytes


def test_the_loss_of_4_45_takes_12_bytes_for_each_token_and_vocabulary_entry() -> None:
    """Of several sequences: logits, shifted logits and log-probabilities in float32; 4.48 keeps 2 B of bfloat16 too."""
    spec = find_model(LLAMA)
    shape = {"batch_size": 2, "seq_len": 1024}
    options = {"gradient_checkpointing": False, "attn_implementation": "flash_attention_2", **shape}
    peaks = {
        series: estimate_memory(recipe_for(spec, transformers=series, **options)).phase_peaks_bytes["forward"]
        for series in ("4.45", "4.48")
    }
    assert peaks["4.48"] - peaks["4.45"] == 2 * 2048 * spec.vocab_size


def test_experts_are_quantised_before_version_5() -> None:
    """Of Mixtral-8x7B, 46,440,382,464 weights are in linear layers then: all but embedding, head and norms."""
    spec = find_model("mistralai/Mixtral-8x7B-v0.1")
    older = recipe_for(spec, transformers="4.57", method="qlora", prepare_kbit=False)
    norms = (2 * 32 + 1) * 4096
    assert older.parameters.quantized == spec.parameters - 2 * 32_000 * 4096 - norms
    assert older.recipe.setting("target_modules") == "all-linear"
    held = {term.component: term.bytes for term in states(older, "cuda").terms}
    # 4 bits, one byte of absmax for each 64, and a float32 for each 256 of those; and codebooks
    codes = older.parameters.quantized * (0.5 + 1 / 64 + 4 / (64 * 256))
    assert held["quantized_weights"] == pytest.approx(codes, rel=1e-4)
    assert held["quantized_weights"] + held["weights"] < 24.6e9
    newer = {
        term.component: term.bytes
        for term in states(recipe_for(spec, method="qlora", prepare_kbit=False), "cuda").terms
    }
    assert newer["quantized_weights"] + newer["weights"] > 90e9


def test_experts_get_their_tokens_evenly() -> None:
    spec = find_model("mistralai/Mixtral-8x7B-v0.1")
    resolved = recipe_for(spec, transformers="4.57", batch_size=1, seq_len=1001)
    assert Values(resolved)[EXPERT_TOKENS] == 251  # 2 · 1001 / 8, rounded up


@pytest.mark.parametrize(
    ("model", "options", "complaint"),
    [
        (LLAMA, {"transformers": "4.44"}, "unknown transformers '4.44': "),
        (LLAMA, {"transformers": "4.48", "loss": "legacy"}, "has a loss of its own"),
        ("gemma-2-2b", {"transformers": "4.48"}, "compared with rehearsals for llama, mistral, mixtral, qwen2 only"),
        ("mistralai/Mistral-7B-v0.1", {"transformers": "4.45"}, "compared with rehearsals for llama, qwen2 only"),
        ("mistralai/Mistral-7B-v0.1", {"transformers": "4.48", "seq_len": 4096}, "use --seq-len 4095 or less"),
    ],
)
def test_what_is_not_known_of_older_series_is_refused(model: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        refuse_impossible(recipe_for(find_model(model), **options))
    assert complaint in str(refused.value)


@pytest.mark.parametrize("command", [["trace", LLAMA], ["run", LLAMA, "-o", "results", "--device", "cpu"]])
def test_only_the_estimate_knows_older_series(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--transformers", "4.48"])
    assert stopped.value.code == 2
    assert "only estimate and plan know older series" in " ".join(capsys.readouterr().err.split())
