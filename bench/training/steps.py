"""The training of one run: its steps in order, with their losses and gradient norms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorabench.bench.training.batches import Batches
from lorabench.estimator.training.optimizer import stop_learning
from lorabench.estimator.training.step import TrainingStep

if TYPE_CHECKING:
    import torch

    from lorabench.estimator.training.step import Batch


class Training:
    """Trains for ``steps`` steps; further steps do the same work with learning rate 0.

    A meter may therefore run as many steps as it needs, and losses depend only on the recipe and the seed.
    """

    def __init__(self, step: TrainingStep, batches: Batches, steps: int) -> None:
        self.step = step
        self.batches = batches
        self.steps = steps
        self.done = 0
        self._losses: list[torch.Tensor] = []
        self._gradient_norms: list[torch.Tensor] = []

    def __call__(self) -> None:
        """Train one step."""
        if self.done >= self.steps:
            stop_learning(self.step.optimizer)
        loss = self.step(self.batches.of_step(self.done))
        assert self.step.gradient_norm is not None
        self.note(loss, self.step.gradient_norm)

    def note(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Record loss and gradient norm of a step of any engine."""
        if self.done < self.steps:
            self._losses.append(loss)
            self._gradient_norms.append(gradient_norm)
        self.done += 1

    def losses(self) -> tuple[float | None, ...]:
        """Return the loss of each step that updated the weights; None if it was not finite."""
        return _finite(self._losses)

    def gradient_norms(self) -> tuple[float | None, ...]:
        """Return the gradient norm of each step that updated the weights, before clipping; None if not finite."""
        return _finite(self._gradient_norms)


def mean_loss(step: TrainingStep, batches: Iterable[Batch]) -> float | None:
    """Return the mean loss of the model over ``batches``, without dropout or training; None if it is not finite."""
    import torch

    # Liger fuses the loss in training only, unless the caller states that it needs no logits.
    fused = {"skip_logits": True} if step.recipe.loss == "liger" else {}
    with step.evaluating(), torch.no_grad(), step.autocast():
        losses = [step.model(**batch, **fused).loss for batch in batches]
    value = torch.stack(losses).double().mean().item()
    return value if math.isfinite(value) else None


def _finite(values: list[torch.Tensor]) -> tuple[float | None, ...]:
    numbers = (value.item() for value in values)
    return tuple(number if math.isfinite(number) else None for number in numbers)
