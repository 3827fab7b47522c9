"""The loss of a recipe: transformers' own, that of its older versions, or a fused kernel's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.fused_loss import OLDEST_LIGER
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.training.fused_loss_on_meta import set_fused_loss

if TYPE_CHECKING:
    import torch

OTHER_LIGER_KERNELS = ("cross_entropy", "geglu", "layer_norm", "relu_squared", "rms_norm", "rope", "swiglu")
"""What ``use_liger_kernel=True`` of transformers' Trainer replaces besides, by the names of liger-kernel 0.8.5."""


def set_loss(model: Any, recipe: Recipe) -> None:
    """Make ``model`` compute the recipe's loss in its forward pass, where transformers computes it.

    Raises:
        UserError: a liger-kernel that is too old.
    """
    if recipe.loss == "legacy":
        model.loss_function = shifted_logits_loss
    elif recipe.loss == "liger" and model.device.type == "meta":
        set_fused_loss(model)
    elif recipe.loss == "liger":
        from transformers.integrations.liger import apply_liger_kernel

        _refuse_old_liger()
        apply_liger_kernel(model, {**dict.fromkeys(OTHER_LIGER_KERNELS, False), "fused_linear_cross_entropy": True})


def _refuse_old_liger() -> None:
    """Refuse a liger-kernel that holds more than is counted.

    Raises:
        UserError: which version is installed, and which is wanted.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.version import Version

    try:
        installed = version("liger-kernel")
    except PackageNotFoundError:  # a nightly build, by another name
        return
    if Version(installed) < Version(OLDEST_LIGER):
        raise UserError(
            f"loss liger: liger-kernel {installed} holds more than newer ones, which lorabench counts: "
            f"pip install 'liger-kernel>={OLDEST_LIGER}'"
        )


def shifted_logits_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int | None = None,
    num_items_in_batch: torch.Tensor | None = None,
    **unused: Any,
) -> torch.Tensor:
    """Return the loss as transformers up to about 4.48 computed it: by shifting the logits, not the labels.

    ``logits`` is (batch, sequence, vocabulary), ``labels`` (batch, sequence). The shift copies the float32 logits,
    which costs 4 · tokens · vocabulary bytes more than shifting the labels. With ``num_items_in_batch``, the tokens of
    all batches of a step, it is this batch's share of their mean, as Trainer asks for. The other arguments are those
    that transformers 5 passes to a loss function.
    """
    from torch.nn.functional import cross_entropy

    upcast = logits.float()
    predictions = upcast[:, :-1, :].contiguous()
    targets = labels[:, 1:].contiguous()
    predictions, targets = predictions.view(-1, predictions.shape[-1]), targets.view(-1)
    if num_items_in_batch is None:
        return cross_entropy(predictions, targets)
    return cross_entropy(predictions, targets, reduction="sum") / num_items_in_batch
