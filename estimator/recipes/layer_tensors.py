"""The tensors of one decoder layer: those of the base model, and those that an adapter adds."""

from __future__ import annotations

from collections.abc import Container, Iterator

from lorabench.estimator.methods.base import Adapter, AdapterTensor
from lorabench.estimator.models.spec import Layers, Weight


def base_shapes(group: Layers) -> list[tuple[int, ...]]:
    """Return the shapes of the base model's parameters in a layer of ``group``."""
    shapes: list[tuple[int, ...]] = []
    for linear in group.linears:
        shapes.append((linear.out_features, linear.in_features))
        if linear.bias:
            shapes.append((linear.out_features,))
    return [*shapes, *(weight.shape for weight in group.weights)]


def adapter_tensors(
    group: Layers, adapter: Adapter, targets: Container[str], model_type: str
) -> Iterator[tuple[str, AdapterTensor]]:
    """Yield the tensors that ``adapter`` adds to a layer of ``group``, each with the path of its module in peft.

    ``targets``: names of the adapted linear layers.
    """
    for linear in group.linears:
        if linear.name in targets:
            yield from ((linear.name, tensor) for tensor in adapter.tensors(linear))
    experts = {weight: adapter.expert_tensors(weight, model_type) for weight in group.adapted_experts}
    for path, weight in _wrapped_paths([weight for weight, tensors in experts.items() if tensors]):
        yield from ((path, tensor) for tensor in experts[weight])


def _wrapped_paths(weights: list[Weight]) -> Iterator[tuple[str, Weight]]:
    """Yield the path of each parameter's adapter. peft wraps a module once per parameter, the last one outermost."""
    modules = [weight.name.rpartition(".")[0] for weight in weights]
    for index, (module, weight) in enumerate(zip(modules, weights, strict=True)):
        yield module + ".base_layer" * modules[index + 1 :].count(module), weight
