"""The loss of a recipe: that of transformers, of its older versions, or of Liger's fused kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.fused_loss import OLDEST_LIGER
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.training.fused_loss_on_meta import set_fused_loss

if TYPE_CHECKING:
    import torch

OTHER_LIGER_KERNELS = ("cross_entropy", "geglu", "layer_norm", "relu_squared", "rms_norm", "rope", "swiglu")
"""Other modules that ``use_liger_kernel=True`` of transformers' Trainer replaces, by liger-kernel 0.8.5's names."""


def set_loss(model: Any, recipe: Recipe) -> None:
    """Make ``model`` compute the recipe's loss in its forward pass, as transformers does.

    Raises:
        UserError: the installed liger-kernel is too old.
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
    """Refuse a liger-kernel that allocates more than the estimate counts.

    Raises:
        UserError: the installed version, and the required one.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.version import Version

    try:
        installed = version("liger-kernel")
    except PackageNotFoundError:  # a nightly build has another name
        return
    if Version(installed) < Version(OLDEST_LIGER):
        raise UserError(
            f"loss liger: liger-kernel {installed} needs more memory than the versions that lorabench estimates: "
            f"pip install 'liger-kernel>={OLDEST_LIGER}'"
        )


def shifted_logits_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int | None = None,
    num_items_in_batch: torch.Tensor | None = None,
    **unused: Any,
) -> torch.Tensor:
    """Return the loss as transformers computed it up to about 4.48: it shifts the logits instead of the labels.

    ``logits`` is (batch, sequence, vocabulary), ``labels`` (batch, sequence). The shift copies the float32 logits,
    which costs 4 · tokens · vocabulary bytes more than a shift of the labels. ``num_items_in_batch``: number of tokens
    of all batches of a step; with it the result is this batch's share of the mean over the step, as in Trainer. The
    other arguments are those that transformers 5 passes to a loss function.
    """
    from torch.nn.functional import cross_entropy

    upcast = logits.float()
    predictions = upcast[:, :-1, :].contiguous()
    targets = labels[:, 1:].contiguous()
    predictions, targets = predictions.view(-1, predictions.shape[-1]), targets.view(-1)
    if num_items_in_batch is None:
        return cross_entropy(predictions, targets)
    return cross_entropy(predictions, targets, reduction="sum") / num_items_in_batch
