"""The loss of a recipe: that of transformers, of its older versions, or a fused one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.losses.cut_cross_entropy import CUT_CROSS_ENTROPY
from lorabench.estimator.losses.fused import FusedLoss
from lorabench.estimator.losses.liger import FUSED_LOSS_ALONE, LIGER
from lorabench.estimator.losses.trl import OUTPUTS, TRL
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.training.chunked_log_probabilities_on_meta import chunked_log_probabilities
from lorabench.estimator.training.cut_cross_entropy_on_meta import cut_cross_entropy
from lorabench.estimator.training.fused_loss_on_meta import set_fused_loss
from lorabench.estimator.training.hidden_states_loss import set_hidden_states_loss

if TYPE_CHECKING:
    import torch


def set_loss(model: Any, recipe: Recipe) -> None:
    """Make ``model`` compute the recipe's loss in its forward pass, as transformers does.

    Raises:
        UserError: the installed package of a fused loss is too old.
    """
    loss = recipe.fused_loss
    if recipe.loss == "legacy":
        model.loss_function = shifted_logits_loss
    elif loss is not None and model.device.type == "meta":
        ON_META[loss.name](model)
    elif loss is not None:
        _refuse_older(loss)
        ON_CUDA[loss.name](model)


def _set_ligers(model: Any) -> None:
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, FUSED_LOSS_ALONE)


def _set_trls(model: Any) -> None:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=OUTPUTS)
    model.forward = partial(model.forward, fused_lm_head=True)


def _set_apples(model: Any) -> None:
    import torch
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # The cap is compiled, which torch refuses while a meter watches operations.
        with torch.compiler.set_stance("force_eager"):
            mean: torch.Tensor = linear_cross_entropy(hidden.to(weight.dtype), weight, labels, softcap=cap, shift=True)
        return mean

    set_hidden_states_loss(model, loss)


ON_CUDA: dict[str, Callable[[Any], None]] = {
    LIGER.name: _set_ligers,
    TRL.name: _set_trls,
    CUT_CROSS_ENTROPY.name: _set_apples,
}
"""What each fused loss does to a model."""
ON_META: dict[str, Callable[[Any], None]] = {
    LIGER.name: set_fused_loss,
    TRL.name: partial(set_hidden_states_loss, loss=chunked_log_probabilities),
    CUT_CROSS_ENTROPY.name: partial(set_hidden_states_loss, loss=cut_cross_entropy),
}
"""What stands for it on meta tensors, where its kernels do not run."""


def _refuse_older(loss: FusedLoss) -> None:
    """Refuse a package that allocates other than the estimate counts.

    Raises:
        UserError: the installed version, and the required one.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.version import Version

    try:
        installed = version(loss.package)
    except PackageNotFoundError:  # a nightly build has another name
        return
    if Version(installed) < Version(loss.oldest):
        raise UserError(
            f"loss {loss.name}: {loss.package} {installed} needs more memory than the versions that lorabench "
            f"estimates: pip install '{loss.package}>={loss.oldest}'"
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
