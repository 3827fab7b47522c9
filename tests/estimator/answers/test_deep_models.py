"""Models that are deeper than any known one are answered by ranges, without a replay, and say so."""

from __future__ import annotations

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.answers.plan import make_plan
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.models.catalogue import find_model, model_names
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import small_model

GPU = find_device("rtx-4090")
DEEPEST = small_model("llama", num_hidden_layers=128)
DEEPER = small_model("llama", num_hidden_layers=129)
SAID = "the allocator is replayed for at most 128 layers, and "


def test_every_model_of_the_catalogue_is_replayed() -> None:
    assert max(find_model(name).num_hidden_layers for name in model_names()) <= DEEPEST.num_hidden_layers


def test_up_to_the_limit_the_allocator_is_replayed() -> None:
    estimate = estimate_recipe(recipe_for(DEEPEST), replay=True)
    assert estimate.memory.peak_reserved_range_bytes is None
    assert estimate.warnings == ()


def test_beyond_it_an_estimate_is_that_without_a_replay_and_says_so() -> None:
    recipe = recipe_for(DEEPER)
    asked, without = (estimate_recipe(recipe, GPU, replay=replay) for replay in (True, False))
    assert asked.memory == without.memory == replayed_memory(recipe, "cuda", GPU.compute_capability)
    assert (asked.verdict, asked.margin_bytes, asked.largest_batch_size) == (
        without.verdict,
        without.margin_bytes,
        without.largest_batch_size,
    )
    assert [said.startswith(SAID) for said in asked.warnings] == [True]
    assert without.warnings == ()


def test_a_plan_chooses_by_the_same_ranges() -> None:
    plan = make_plan(DEEPER, GPU, {"method": "lora", "batch_size": 1})
    best = plan.choices[0]
    memory = estimate_memory(ResolvedRecipe(DEEPER, best.recipe), compute_capability=GPU.compute_capability)
    assert memory.device_total_range_bytes is not None
    assert best.device_total_most_bytes == memory.device_total_range_bytes[1]
    assert [said.startswith(SAID) for said in plan.warnings] == [True]
