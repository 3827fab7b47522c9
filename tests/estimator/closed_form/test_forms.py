"""One set of formulas: compiled forms, the step they are compiled from, and arrays of settings say the same."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from lorabench.estimator.closed_form import forms
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.memory_grid import estimate_memory_grid
from lorabench.estimator.closed_form.sizes import Values
from lorabench.estimator.closed_form.step import peak_candidates
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.persistent import persistent_bytes
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import CHOICES, Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import FAMILIES, small_model

WINDOWED = {"mistral": {"sliding_window": 512}, "gemma2": {"sliding_window": 512}}
"""Families whose layers may look back no further than a window."""


def sample(family: str, many: int) -> list[tuple[ModelSpec, Recipe]]:
    draw = random.Random(family)
    spec = small_model(family, vocab_size=1000, **WINDOWED.get(family, {}))
    found: list[tuple[ModelSpec, Recipe]] = []
    while len(found) < many:
        options: dict[str, Any] = {
            name: draw.choice(CHOICES[name]) for name in ("method", "dtype", "mixed_precision", "optim")
        }
        options |= {
            "batch_size": draw.choice([1, 2, 5]),
            "seq_len": draw.choice([1, 100, 511, 512, 513, 3000]),
            "gradient_accumulation": draw.choice([1, 2, 7]),
            "gradient_checkpointing": draw.random() < 0.5,
            "attn_implementation": draw.choice(CHOICES["attn_implementation"]),
            "loss": draw.choice(["standard", "legacy"]),
        }
        if options["method"] != "full":
            options |= {
                "rank": draw.choice([1, 3, 16, 257]),
                "lora_alpha": draw.choice([None, 1, 32]),
                "lora_dropout": draw.choice([0.0, 0.1]),
                "target_modules": draw.choice(["all-linear", "attention"]),
                "adapter_dtype": draw.choice(CHOICES["adapter_dtype"]),
            }
        try:
            found.append((spec, make_recipe(spec.name, **options)))
        except UserError:
            continue
    return found


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_forms_say_what_the_step_says(family: str, backend: Backend) -> None:
    for spec, recipe in sample(family, 5):
        values = Values(ResolvedRecipe(spec, recipe))
        persistent = persistent_bytes(ResolvedRecipe(spec, recipe), backend, None)
        candidates = [
            (candidate.phase, Counter(candidate.component_bytes(values)) + Counter(persistent[candidate.phase]))
            for candidate in peak_candidates(ResolvedRecipe(spec, recipe), backend)
        ]
        phase, components = max(candidates, key=lambda candidate: candidate[1].total())
        memory = estimate_memory(ResolvedRecipe(spec, recipe), backend)
        assert memory.peak_allocated_bytes == components.total(), recipe
        assert (memory.phase, Counter(memory.components)) == (phase, components), recipe
        for phase, phase_peak in memory.phase_peaks_bytes.items():
            assert phase_peak == max(bytes_.total() for at, bytes_ in candidates if at == phase), recipe


@pytest.mark.parametrize("family", FAMILIES)
def test_arrays_say_what_single_recipes_say(family: str) -> None:
    batch_sizes, seq_lens, ranks = [1, 2, 3, 64], [1, 128, 511, 512, 8192, 131072], [1, 2, 16, 300]
    for spec, recipe in sample(family, 1):
        adapted = recipe.rank is not None
        shaped = np.ix_(batch_sizes, seq_lens, ranks if adapted else [1])
        peaks = estimate_memory_grid(ResolvedRecipe(spec, recipe), shaped[0], shaped[1], shaped[2] if adapted else None)
        assert peaks.dtype == np.int64
        assert peaks.shape == (4, 6, 4 if adapted else 1)
        for (batch, length, rank), peak in np.ndenumerate(peaks):
            changed = replace(recipe, batch_size=batch_sizes[batch], seq_len=seq_lens[length])
            changed = changed.with_rank(ranks[rank])
            assert peak == estimate_memory(ResolvedRecipe(spec, changed)).peak_allocated_bytes, changed


def test_settings_broadcast_as_numpy_does() -> None:
    spec = small_model("llama")
    recipe = make_recipe(spec.name, rank=8, seq_len=256)
    one = estimate_memory(ResolvedRecipe(spec, recipe)).peak_allocated_bytes
    assert estimate_memory_grid(ResolvedRecipe(spec, recipe), 1, 256).tolist() == one
    assert estimate_memory_grid(ResolvedRecipe(spec, recipe), [1], [256, 256], 8).tolist() == [one, one]
    assert estimate_memory_grid(ResolvedRecipe(spec, recipe), [], [], []).shape == (0,)


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({}, ([1, 2], [1, 2, 3], [8]), r"do not broadcast.*batch_sizes \(2,\), seq_lens \(3,\)"),
        ({}, ([0], [1], [8]), "batch_sizes: must be from 1 to 2147483647"),
        ({}, ([1], [1.5], [8]), "seq_lens: must be whole numbers"),
        ({}, ([1], [1], [2**31]), "ranks: must be from 1"),
        ({"method": "full"}, ([1], [1], [8]), "ranks do not apply to method full"),
        ({}, ([2**31 - 1], [2**31 - 1], [8]), "PiB"),
        ({"target_modules": "nothing"}, ([1], [1], [8]), "no linear layer 'nothing'"),
    ],
)
def test_arrays_that_no_recipe_can_have_are_refused(options: dict[str, Any], settings: Any, said: str) -> None:
    spec = small_model("llama")
    with pytest.raises(UserError, match=said):
        estimate_memory_grid(ResolvedRecipe(spec, make_recipe(spec.name, **options)), *settings)


def test_a_form_serves_every_batch_length_and_rank_of_its_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    forms.compile_form.cache_clear()
    runs: list[Recipe] = []

    def watched(resolved: ResolvedRecipe, backend: Backend, compute_capability: str | None) -> Any:
        runs.append(resolved.recipe)
        return peak_candidates(resolved, backend, compute_capability)

    monkeypatch.setattr(forms, "peak_candidates", watched)
    for batch_size, seq_len, rank in [(2, 128, 8), (3, 4096, 64), (2**20, 1, 1)]:
        spec = small_model("llama")  # equal, not the same
        estimate_memory(ResolvedRecipe(spec, make_recipe(spec.name, batch_size=batch_size, seq_len=seq_len, rank=rank)))
    assert len(runs) == 1
    estimate_memory(ResolvedRecipe(small_model("llama", num_hidden_layers=5), make_recipe("llama", batch_size=2)))
    assert len(runs) == 2


def test_a_model_that_changed_gets_a_form_of_its_own() -> None:
    spec = small_model("mistral", sliding_window=512)
    recipe = make_recipe(spec.name, seq_len=600)
    masked = estimate_memory(ResolvedRecipe(spec, recipe))
    spec.config["sliding_window"] = None
    assert estimate_memory(ResolvedRecipe(spec, recipe)).peak_allocated_bytes < masked.peak_allocated_bytes
