"""The tensors of a model, each with the component that counts its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every tensor of ``model`` with its component (of `breakdown.COMPONENTS`).

    They are parameters, quantisation constants, buffers, and tensors in other attributes of modules. Some items are
    lists or tuples of tensors.
    """
    frozen_any = any(not parameter.requires_grad for parameter in model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield "quantized_weights", (parameter, *_quantization_constants(state))
        else:
            yield "adapters" if parameter.requires_grad and frozen_any else "weights", parameter
    for module in model.modules():
        yield "buffers", list(module.buffers(recurse=False))
        yield "buffers", list(vars(module).values())


def model_bytes(model: nn.Module, *device_types: str) -> int:
    """Return the bytes of all storages of ``model`` on ``device_types``. A shared storage counts once."""
    tensors = (tensor for _, tensor in model_tensors(model))
    storages = {
        id(storage): storage.nbytes()
        for tensor in tensors_in(tensors)
        if tensor.device.type in device_types
        for storage in [tensor.untyped_storage()]
    }
    return sum(storages.values())


def _quantization_constants(state: Any) -> Iterator[Any]:
    yield from (state.absmax, state.code, state.offset)
    if state.state2 is not None:
        yield from (state.state2.absmax, state.state2.code)


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors in ``values`` and in nested lists and tuples."""
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
