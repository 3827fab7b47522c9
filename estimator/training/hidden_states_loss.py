"""Let a causal language model compute its loss from hidden states and labels, without logits."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    HiddenStatesLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """Maps hidden states (batch, sequence, h), the head's weight (V, h) and labels (batch, sequence) to the loss."""


def set_hidden_states_loss(model: Any, loss: HiddenStatesLoss) -> None:
    """Let ``model``, a causal language model, return ``loss`` instead of logits.

    The head's forward computes the loss. So the tensors of the loss belong to the head's module, in forward and
    backward.
    """
    head = model.get_output_embeddings()

    def of_head(head: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss(hidden, head.weight, labels)

    def forward(model: Any, input_ids: torch.Tensor, labels: torch.Tensor, **options: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        outputs = model.base_model(input_ids=input_ids, **{**options, "use_cache": False})
        return CausalLMOutputWithPast(loss=model.get_output_embeddings()(outputs.last_hidden_state, labels))

    head.forward = MethodType(of_head, head)
    model.forward = MethodType(forward, model)
