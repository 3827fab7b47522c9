from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import TrainingStep
from tests.small_models import TINY, small_model


class Switched(torch.optim.SGD):
    """Plain SGD that must be told what comes, as schedule-free optimizers must."""

    training = False

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False

    def step(self, *arguments: Any) -> Any:
        assert self.training
        return super().step(*arguments)


def test_an_optimizer_is_told_whether_it_trains_or_evaluates() -> None:
    spec = small_model("llama", **TINY)
    recipe = make_recipe(spec.name, method="full", seq_len=8, mixed_precision="no")
    model = build_model(ResolvedRecipe(spec, recipe), "cpu")
    optimizer = Switched(model.parameters(), lr=0.1)
    step = TrainingStep(model, optimizer, recipe)
    tokens = torch.arange(8)[None]
    step([{"input_ids": tokens, "labels": tokens}])
    with step.evaluating():
        assert not optimizer.training
        assert not model.training
    assert optimizer.training
    assert model.training


def test_the_cache_is_emptied_before_the_backward_passes_of_every_second_step() -> None:
    spec = small_model("llama", **TINY)
    recipe = make_recipe(spec.name, method="full", seq_len=8, gradient_accumulation=2)
    model = build_model(ResolvedRecipe(spec, recipe), "cpu")
    recipe = replace(recipe, empty_cache_steps=2)
    seen: list[str] = []
    optimizer = make_optimizer(model, recipe)
    step = TrainingStep(model, optimizer, recipe, seen.append, lambda: seen.append("emptied"))
    tokens = torch.arange(8)[None]
    batches = [{"input_ids": tokens, "labels": tokens}] * 2
    plain = [*["forward", "backward"] * 2, "optimizer"]
    emptying = [*["forward", "emptied", "backward"] * 2, "optimizer"]
    for expected in (emptying, plain, emptying):
        step(batches)
        assert seen == expected
        seen.clear()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_reentrant_checkpointing_trains_the_same(method: str) -> None:
    spec = small_model("llama", **TINY)
    tokens = torch.arange(8)[None]
    found = []
    for use_reentrant in (False, True):
        recipe = make_recipe(spec.name, method=method, seq_len=8, use_reentrant=use_reentrant)
        model = build_model(ResolvedRecipe(spec, recipe), "cpu")
        step = TrainingStep(model, make_optimizer(model, recipe), recipe)
        losses = [step([{"input_ids": tokens, "labels": tokens}]).item() for _ in range(3)]
        assert step.gradient_norm is not None
        found.append((losses, step.gradient_norm.item()))
    assert found[0] == found[1]


@pytest.mark.parametrize("keep_outputs", [False, True])
def test_the_logits_outlive_a_step_if_the_loop_keeps_the_outputs(keep_outputs: bool) -> None:
    spec = small_model("llama", **TINY)
    recipe = make_recipe(spec.name, method="full", seq_len=8, keep_outputs=keep_outputs)
    model = build_model(ResolvedRecipe(spec, recipe), "cpu")
    step = TrainingStep(model, make_optimizer(model, recipe), recipe)
    made: list[weakref.ref[torch.Tensor]] = []
    model.register_forward_hook(lambda module, arguments, outputs: made.append(weakref.ref(outputs.logits)))
    tokens = torch.arange(8)[None]
    for _ in range(2):
        step([{"input_ids": tokens, "labels": tokens}])
    first, second = (logits() is not None for logits in made)
    assert (first, second) == (False, keep_outputs)
