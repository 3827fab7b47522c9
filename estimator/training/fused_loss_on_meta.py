"""Liger's fused linear cross-entropy for meta tensors. Liger's own kernels are compiled for the GPU.

It makes the allocations of liger-kernel 0.8.5 on a GPU of `compute_capability`, in their order and with their lifetimes
(`losses.liger` has the sources). Liger's kernels run in place, so only their arguments need memory.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any

from lorabench.estimator.losses.liger import adds_16_bit_products, chunk_rows

if TYPE_CHECKING:
    import torch

compute_capability: str | None = None
"""As in `Device`. A trace sets it while steps run (`running_on_meta`)."""
IGNORED = -100
"""Label of tokens that the loss ignores."""


def set_fused_loss(model: Any) -> None:
    """Let ``model``, a causal language model on meta, compute its loss from hidden states and labels, without logits.

    The head's forward computes the loss instead of logits. So the tensors of the loss belong to the head's module, in
    forward and backward.
    """
    head = model.get_output_embeddings()
    head.forward = MethodType(_loss_of_head, head)
    model.forward = MethodType(_forward, model)


def _forward(model: Any, input_ids: torch.Tensor, labels: torch.Tensor, **options: Any) -> Any:
    """Return the output of a causal language model in training without logits, as Liger's forward passes do.

    ``input_ids`` and ``labels`` are (batch, sequence).
    """
    from transformers.modeling_outputs import CausalLMOutputWithPast

    outputs = model.base_model(input_ids=input_ids, **options)
    hidden = outputs[0][:, slice(0, None), :]
    loss = model.get_output_embeddings()(hidden, labels)
    return CausalLMOutputWithPast(loss=loss, past_key_values=outputs.past_key_values)


def _loss_of_head(head: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of next-token prediction from ``hidden`` (batch, sequence, hidden size)."""
    from torch.nn.functional import pad

    labels = pad(labels, (0, 1), value=IGNORED)
    targets = labels[..., 1:].contiguous()
    loss: torch.Tensor = _function().apply(hidden.view(-1, hidden.shape[-1]), head.weight, targets.view(-1))
    return loss


@cache
def _function() -> Any:
    import torch

    class FusedLinearCrossEntropy(torch.autograd.Function):
        """Computes the gradients in forward and returns them in backward."""

        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            """Return the loss; ``hidden`` is (tokens, hidden size), ``weight`` (vocabulary, hidden size)."""
            losses, gradients = _losses_and_gradients(hidden, weight, targets)
            ctx.save_for_backward(*(None if each is None else each.detach() for each in gradients))
            return losses.sum()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            """Return the gradients of forward. If ``gradient`` is not 1, Liger scales them in place."""
            return *ctx.saved_tensors, None

    return FusedLinearCrossEntropy


def _losses_and_gradients(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor | None]]:
    """Return the float32 loss of each token, (tokens,), and the gradients of ``hidden`` and ``weight``.

    The weight's gradient is None if the weight is frozen. ``hidden`` is (tokens, hidden size), ``weight`` (vocabulary,
    hidden size), ``targets`` (tokens,).
    """
    import torch

    tokens, (vocab_size, hidden_size) = len(hidden), weight.shape
    rows = chunk_rows(tokens, vocab_size, hidden_size)
    to_hidden = torch.zeros_like(hidden)
    to_weight = torch.zeros_like(weight) if weight.requires_grad else None
    losses = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
    counted = targets != IGNORED
    counted.sum()
    dtype = _product_dtype(hidden)
    in_place = hidden.dtype == weight.dtype == dtype
    # Matmuls with an output argument share one chunk of logits; others allocate a chunk each. The logits are
    # overwritten by their gradient in either case.
    shared = torch.empty((rows, vocab_size), dtype=dtype, device=hidden.device) if in_place else None
    for start in range(0, tokens, rows):
        chunk = hidden[start : start + rows]
        if shared is None:
            logits = _product(chunk, weight, dtype)
            logits @ weight  # then copied into its rows of to_hidden
        else:
            logits = shared[: len(chunk)]
        if to_weight is not None:
            _add_product(to_weight, logits, chunk)
        del logits, chunk
    return losses, (to_hidden, to_weight)


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the dtype in which matmuls run."""
    import torch

    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def _product(chunk: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the logits of a chunk, (c, V). Autocast does not cache its cast of the weight's transpose, a view."""
    second = weight.detach().to(dtype)
    return chunk.to(dtype) @ second.t()


def _add_product(to_weight: torch.Tensor, to_logits: torch.Tensor, chunk: torch.Tensor) -> None:
    """Add a chunk's share to the weight's gradient, (V, h): in the matmul itself if there is such a kernel (addmm).

    There is one for 16-bit factors and a gradient in their dtype or float32, on newer GPUs. Otherwise the matmul has
    its own result, which is then cast to float32.
    """
    import torch

    half = to_logits.dtype in (torch.float16, torch.bfloat16)
    if half and adds_16_bit_products(compute_capability) and to_weight.dtype in (torch.float32, to_logits.dtype):
        chunk.to(to_logits.dtype)  # alive during the matmul
    else:
        to_weight += torch.mm(to_logits.t(), chunk).float()
