"""The optimizer of a recipe, as transformers' Trainer makes it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, cast

from lorabench.estimator.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

LEARNING_RATE = 2e-4
"""What the QLoRA paper (Dettmers et al. 2023, table 9) trains 7B and 13B models with. It changes losses, not memory."""


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer that transformers' Trainer makes for ``recipe.optim``, over the weights that train.

    Class and arguments come from Trainer itself, with its defaults but for `LEARNING_RATE`; Trainer's weight decay is
    0 by default, so its two parameter groups are one here. As there, 8-bit optimizers keep float32 states for
    embeddings.
    """
    from transformers import Trainer, TrainingArguments

    # Trainer makes its output folder when it saves, and nothing is saved here.
    arguments = TrainingArguments(
        output_dir="unused", optim=recipe.optim, learning_rate=LEARNING_RATE, report_to=[], do_train=False
    )
    make, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    if "optim_bits" in options:
        forget_overrides()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.optim == "stable_adamw":
        # Left to itself it runs Triton's kernels wherever Triton is installed, which a CPU cannot.
        options["triton"] = all(parameter.is_cuda for parameter in trained) and _has_triton()
    optimizer = cast("torch.optim.Optimizer", cast(Any, make)(trained, **options))
    if options.get("optim_bits") == 8:
        _keep_embeddings_whole(model)
    return optimizer


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def stop_learning(optimizer: torch.optim.Optimizer) -> None:
    """Let further steps of ``optimizer`` do the same work, and change no weight."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        if "lr_max" in group:
            # A schedule-free optimizer goes on to average its weights, by the largest learning rate that it has had.
            group["lr_max"] = 0.0


def forget_overrides() -> None:
    """Forget which tensors bitsandbytes was told to treat apart.

    It keeps that for the process, by the tensors' places, so that the next model's would be taken for the last one's.
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
