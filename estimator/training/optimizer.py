"""The optimizer of a recipe, as transformers' Trainer creates it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, cast

from lorabench.estimator.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

LEARNING_RATE = 2e-4
"""QLoRA's learning rate for 7B and 13B models (Dettmers et al. 2023, table 9). It changes losses, not memory."""


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer that transformers' Trainer creates for ``recipe.optim``, over the trained weights.

    Class and arguments come from Trainer itself, with its defaults except for `LEARNING_RATE`. Trainer's weight decay
    is 0 by default, so its two parameter groups are one here. 8-bit optimizers keep float32 states for embeddings, as
    in Trainer.
    """
    from transformers import Trainer, TrainingArguments

    # Trainer creates its output folder only when it saves, and this code saves nothing.
    arguments = TrainingArguments(
        output_dir="unused", optim=recipe.optim, learning_rate=LEARNING_RATE, report_to=[], do_train=False
    )
    make, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    if "optim_bits" in options:
        forget_overrides()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.optim == "stable_adamw":
        # By default it runs its Triton kernels if Triton is installed, even on a CPU, and then fails.
        options["triton"] = all(parameter.is_cuda for parameter in trained) and _has_triton()
    optimizer = cast("torch.optim.Optimizer", cast(Any, make)(trained, **options))
    if options.get("optim_bits") == 8:
        _keep_embeddings_whole(model)
    return optimizer


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def stop_learning(optimizer: torch.optim.Optimizer) -> None:
    """Let further steps of ``optimizer`` do the same work without changing weights."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        if "lr_max" in group:
            # A schedule-free optimizer weights its average by its largest learning rate so far.
            group["lr_max"] = 0.0


def forget_overrides() -> None:
    """Clear bitsandbytes' overrides of settings for single tensors.

    bitsandbytes keeps them for the whole process, by the index of a tensor, so the next model would get the last one's.
    """
    import bitsandbytes

    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()


def _keep_embeddings_whole(model: nn.Module) -> None:
    import bitsandbytes
    from torch import nn

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
