"""Cut Cross-Entropy for meta tensors, which its Triton kernels do not run on. All tokens have a label.

It makes the allocations of cut-cross-entropy 25.1.1 on a GPU, in their order and with their lifetimes.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def cut_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of next-token prediction.

    ``hidden`` is (batch, sequence, hidden size), ``weight`` (vocabulary, hidden size), ``labels`` (batch, sequence).
    """
    loss: torch.Tensor = _function().apply(
        hidden.to(weight.dtype).flatten(0, -2), weight, _positions(labels), labels.flatten()
    )
    return loss


def _positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the positions of the tokens that have a label, (batch · (sequence − 1),), int64."""
    import torch

    shifted = labels[..., 1:]
    mask = shifted != -100
    wide = torch.empty((mask.numel(), 2), dtype=torch.int64, device=labels.device)
    del mask
    narrow = wide.to(torch.int32)
    del wide
    return narrow.sum(1)


@cache
def _function() -> Any:
    import torch

    class LinearCrossEntropy(torch.autograd.Function):
        """Keeps the logarithm of each token's sum, and the mean of each logit."""

        @staticmethod
        def forward(
            ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor
        ) -> torch.Tensor:
            """Return the loss; ``hidden`` is (tokens, h), ``weight`` (V, h)."""
            sums = torch.empty(len(positions), dtype=torch.float32, device=hidden.device)
            trains = hidden.requires_grad or weight.requires_grad
            means = torch.empty(len(weight), dtype=torch.float32, device=hidden.device) if trains else None
            losses = torch.empty_like(sums)
            ctx.save_for_backward(hidden, weight, sums, positions, labels, means)
            return losses.mean()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            """Return the gradients of hidden states and weight."""
            hidden, weight, *_, means = ctx.saved_tensors
            order = torch.argsort(means).to(torch.int32)
            to_hidden = torch.zeros_like(hidden)
            to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
            del order
            return to_hidden, to_weight, None, None

    return LinearCrossEntropy
