"""A walk that repeats inner layers is the walk of every layer, event for event."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.repetition import FEW, OUTSIDE, Part, Pattern, find_pattern, repeat
from lorabench.estimator.closed_form.sizes import Values
from lorabench.estimator.closed_form.step import walk_evaluation
from lorabench.estimator.closed_form.walk import Walk, chunks_of, evaluation_walk, walk, walk_every_layer
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.reductions import multiprocessors_of
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.read_config import MODEL_TYPES
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import small_model

LAYERS = FEW + 3
RECIPES: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "lora"},
    {"method": "qlora", "batch_size": 2},
    {"method": "ia3"},
    {"method": "lora", "modules_to_save": "lm_head", "mixed_precision": "no", "lora_dropout": 0.0},
    {"method": "full", "gradient_checkpointing": False, "attn_implementation": "eager"},
]


@pytest.mark.parametrize("options", RECIPES, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
def test_repeated_layers_have_the_events_of_every_layer(model_type: str, options: dict[str, Any]) -> None:
    layers = {"n_layer": LAYERS} if model_type == "gpt2" else {"num_hidden_layers": LAYERS}
    try:
        resolved = recipe_for(small_model(model_type, **layers), seq_len=32, **options)
    except UserError:
        return  # a combination that the model does not have
    assert resolved.spec.num_hidden_layers == LAYERS
    setup, chunks = Setup(resolved, "cuda", "8.0"), chunks_of(resolved)
    for accumulating in (False, True):
        whole = walk_every_layer(resolved.replaced(gradient_accumulation=1 + accumulating), "8.0", chunks)
        shortened = walk(setup, chunks, accumulating=accumulating)
        assert contents(shortened, resolved) == contents(whole, resolved)
        if model_type == "llama" and resolved.recipe.gradient_checkpointing:
            assert shortened.repetition is not None
    evaluation = evaluation_walk(setup, chunks)
    whole = walk_every_layer(resolved, "8.0", chunks, walk_evaluation)
    assert contents(evaluation, resolved) == contents(whole, resolved)
    if model_type == "llama":
        assert evaluation.repetition is not None
        assert not evaluation.marks


PATTERNS = (
    "google/gemma-2-2b",
    "google/gemma-3-1b-it",
    "openai/gpt-oss-20b",
    "deepseek-ai/DeepSeek-Coder-V2-Lite-Base",
)


@pytest.mark.parametrize("name", PATTERNS)
def test_layers_that_repeat_in_a_pattern_have_the_events_of_every_layer(name: str) -> None:
    resolved = recipe_for(find_model(name), seq_len=4608, target_modules="attention", lora_dropout=0.0)
    chunks = chunks_of(resolved)
    whole = walk_every_layer(resolved, "8.0", chunks)
    shortened = walk(Setup(resolved, "cuda", "8.0"), chunks, accumulating=False)
    assert shortened.repetition is not None
    assert contents(shortened, resolved) == contents(whole, resolved)


@pytest.mark.parametrize(
    ("kinds", "pattern"),
    [
        ("a" * 32, Pattern(first=1, period=1, blocks=30, last=1)),
        ("ab" * 13, Pattern(first=2, period=2, blocks=11, last=2)),
        ("sssssf" * 8, Pattern(first=6, period=6, blocks=6, last=6)),
        ("ddd" + "e" * 20, Pattern(first=4, period=1, blocks=18, last=1)),
        ("d" + "ab" * 13, Pattern(first=3, period=2, blocks=11, last=2)),
        ("a" * 6, None),
        ("abcdefgh" * 2, None),
    ],
)
def test_the_pattern_of_layers_is_found(kinds: str, pattern: Pattern | None) -> None:
    assert find_pattern(kinds) == pattern
    if pattern is not None:
        assert pattern.first + pattern.blocks * pattern.period + pattern.last == len(kinds)


def contents(walked: Walk, resolved: ResolvedRecipe) -> tuple[list[Any], ...]:
    """Return the events, marks and gradients of ``walked`` on an A100."""
    sizes = walked.sizes(Values(resolved), multiprocessors_of("8.0", 108))
    return walked.blocks, sizes, walked.marks, sorted(walked.gradients)


def test_layers_that_differ_are_not_repeated() -> None:
    parts = [Part(OUTSIDE, "before", 0), *(Part(layer, "forward", layer) for layer in range(FEW))]
    assert repeat(parts, [(layer, 8, "size") for layer in range(FEW)], 10) is not None
    assert repeat(parts, [(layer, 8 + (layer == 3), "size") for layer in range(FEW)], 10) is None
