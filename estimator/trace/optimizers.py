"""The optimizer of a recipe, as transformers' Trainer makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lorabench.estimator.recipes import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

LEARNING_RATE = 2e-4
"""What the QLoRA paper (Dettmers et al. 2023, table 9) trains 7B and 13B models with. It changes losses, not memory."""


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer that transformers' Trainer makes for ``recipe.optim``, over the weights that train.

    Class and arguments come from Trainer itself, with its defaults but for `LEARNING_RATE`; Trainer's weight decay is
    0 by default, so its two parameter groups are one here.
    """
    from transformers import Trainer, TrainingArguments

    # Trainer makes its output folder when it saves, and nothing is saved here.
    arguments = TrainingArguments(
        output_dir="unused", optim=recipe.optim, learning_rate=LEARNING_RATE, report_to=[], do_train=False
    )
    make, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return cast("torch.optim.Optimizer", cast(Any, make)(trained, **options))
