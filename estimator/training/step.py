"""One training step: the only training loop of lorabench, under every meter and on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from lorabench.estimator.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

Batch = dict[str, "torch.Tensor"]
"""``input_ids`` and ``labels``; and ``attention_mask`` if the batch is padded. Each is (batch_size, seq_len), int64."""

MAX_GRAD_NORM = 1.0
"""Gradients with a larger norm are scaled down to this one: the default of transformers' TrainingArguments."""


class TrainingStep:
    """Forward, backward, clipping and optimizer step of a recipe, as transformers' Trainer runs them.

    Only the loss outlives the forward pass: the model's output, logits included, is freed before backward. Under a
    recipe with ``keep_outputs`` it stays until the next forward pass ends. Under one with ``empty_cache_steps`` the
    allocator's cache is emptied between the two passes, where Trainer empties it.
    ``done`` is the number of steps so far. ``gradient_norm`` is the last step's norm before clipping, a scalar tensor
    on the device; None before the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        on_phase: Callable[[str], None] = lambda phase: None,
        empty_cache: Callable[[], None] | None = None,
    ) -> None:
        """Prepare steps of ``model``.

        ``on_phase`` is called with each phase (of `breakdown.PHASES`) when it begins, and ``empty_cache`` when the
        cache is to be emptied; None empties CUDA's.
        """
        import torch

        self.model = model
        self.optimizer = optimizer
        self.recipe = recipe
        self.on_phase = on_phase
        self.device_type = next(model.parameters()).device.type
        # A gradient scaler checks gradients for infinities, and meta tensors have no values.
        scales = recipe.mixed_precision == "fp16" and self.device_type != "meta"
        self.scaler = torch.amp.GradScaler(self.device_type) if scales else None
        self.gradient_norm: torch.Tensor | None = None
        self.done = 0
        self._empty_cache = torch.cuda.empty_cache if empty_cache is None else empty_cache
        self._outputs: Any = None

    def __call__(self, batches: Iterable[Batch]) -> torch.Tensor:
        """Train one step on ``batches``, one per micro-batch, and return their mean loss, a detached scalar.

        Each batch is requested when the previous one is done. The gradients stay until the next step begins.
        """
        self._of_optimizer("train")
        self.optimizer.zero_grad(set_to_none=True)
        total: torch.Tensor | None = None
        for batch in batches:
            self.on_phase("forward")
            with self.autocast():
                outputs = self.model(**batch)
                loss = outputs.loss / self.recipe.gradient_accumulation
            self._outputs = outputs if self.recipe.keep_outputs else None
            del outputs
            if self.recipe.empties_cache(self.done):
                self._empty_cache()
            self.on_phase("backward")
            if self.scaler is None:
                loss.backward()
            else:
                self.scaler.scale(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
            del loss
        self.on_phase("optimizer")
        self._clip()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        assert total is not None
        self.done += 1
        return total

    def _clip(self) -> None:
        from torch.nn.utils import clip_grad_norm_

        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self.gradient_norm = clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Return a context for evaluation: no dropout, and the averaged weights of schedule-free optimizers."""
        self.model.eval()
        self._of_optimizer("eval")
        try:
            yield
        finally:
            self._of_optimizer("train")
            self.model.train()

    def _of_optimizer(self, mode: str) -> None:
        """Switch the optimizer to ``mode``, train or eval, as Trainer does.

        Schedule-free optimizers evaluate at the average of their weights, and train at another point. Other optimizers
        have no such mode.
        """
        switch = getattr(self.optimizer, mode, None)
        if callable(switch):
            switch()

    def autocast(self) -> Any:
        """Return the context in which the recipe's forward pass runs."""
        import torch

        if self.recipe.mixed_precision == "no":
            return nullcontext()
        return torch.autocast(self.device_type, getattr(torch, self.recipe.compute_dtype))
