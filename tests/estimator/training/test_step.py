from __future__ import annotations

from typing import Any

import torch

from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
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
