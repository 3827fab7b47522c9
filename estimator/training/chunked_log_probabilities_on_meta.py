"""TRL's fused head for meta tensors, whose number of labelled tokens only values tell: here all have a label.

It makes the allocations of trl 1.16 on a GPU, in their order and with their lifetimes (`losses.trl`), as far as they
grow with the hidden size or the vocabulary, or hold an integer for each token.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from lorabench.estimator.losses.trl import TILE_TOKENS, TILE_VOCABULARY

if TYPE_CHECKING:
    import torch


def chunked_log_probabilities(last: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of next-token prediction.

    ``last`` is (batch, sequence, hidden size), ``weight`` (vocabulary, hidden size), ``labels`` (batch, sequence).
    """
    hidden, labels = last[:, :-1], labels[:, 1:]
    mask = labels != -100
    labelled = _labelled().apply(hidden)
    targets = labels.new_empty(labels.numel())
    log_probabilities = _log_probabilities().apply(labelled, weight, targets)
    scattered = log_probabilities.new_zeros(mask.shape).masked_scatter(mask, log_probabilities)
    del labelled, targets, log_probabilities
    loss: torch.Tensor = -scattered.sum() / mask.sum()
    return loss


def _indices(like: torch.Tensor) -> torch.Tensor:
    """Return what ``nonzero`` does: the sequence and the position of each labelled token, (tokens, 2)."""
    import torch

    return torch.empty((like.shape[0] * like.shape[1], 2), dtype=torch.int64, device=like.device)


@cache
def _labelled() -> Any:
    import torch

    class Labelled(torch.autograd.Function):
        """``hidden[mask]``: (batch, sequence, hidden size) to (tokens, hidden size)."""

        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
            """Return a copy of the rows."""
            ctx.shape = hidden.shape
            indices = _indices(hidden)
            rows = hidden.new_empty((len(indices), hidden.shape[-1]))
            del indices
            return rows

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            """Return zeros of the whole shape, with the gradient written into the rows."""
            whole = gradient.new_zeros(ctx.shape)
            _indices(whole)
            return whole

    return Labelled


@cache
def _log_probabilities() -> Any:
    import torch

    class LogProbabilities(torch.autograd.Function):
        """Computes tiles of logits in forward, and again in backward."""

        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            """Return them, (tokens,); ``hidden`` is (tokens, h), ``weight`` (V, h), ``targets`` (tokens,)."""
            ctx.dtype = _product_dtype(hidden)
            vectors = [_vector(hidden) for _ in range(7)]
            tile = _tile(hidden, ctx.dtype)
            _multiply(hidden, weight, ctx.dtype)
            log_z, log_probabilities, entropy = (_vector(hidden) for _ in range(3))
            ctx.save_for_backward(hidden, weight, targets, log_z, entropy)
            del vectors, tile
            return log_probabilities

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            """Return the gradients of hidden states and weight, made in float32."""
            hidden, weight, *_ = ctx.saved_tensors
            to_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
            to_weight = None
            if ctx.needs_input_grad[1]:
                to_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            tile = _tile(hidden, ctx.dtype)
            _multiply(hidden, weight, ctx.dtype)
            cast = to_hidden.to(hidden.dtype), None if to_weight is None else to_weight.to(weight.dtype), None
            del tile
            return cast

    return LogProbabilities


def _vector(hidden: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)


def _tile(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return hidden.new_empty((min(len(hidden), TILE_TOKENS), TILE_VOCABULARY), dtype=dtype)


def _multiply(hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> None:
    """Cast the parts of hidden states and weight that TRL multiplies, one tile after the other."""
    for start in range(0, len(hidden), TILE_TOKENS):
        chunk = hidden[start : start + TILE_TOKENS].to(dtype)
        for first in range(0, len(weight), TILE_VOCABULARY):
            weight[first : first + TILE_VOCABULARY].to(dtype)
        del chunk


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the dtype in which matmuls run."""
    import torch

    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype
