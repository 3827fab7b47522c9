"""How many parameters a recipe has: the model's, the adapters', those that train, those that are quantised."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from math import prod

from msgspec import Struct

from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.methods.base import Adapter, AdapterTensor
from lorabench.estimator.models.spec import Layers, Linear, ModelSpec, Weight
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.recipes.modules_to_save import SavedModule, resolve_modules_to_save
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.target_modules import resolve_target_modules


def adapted_linears(spec: ModelSpec, recipe: Recipe) -> Iterator[tuple[Linear, int]]:
    """Yield each linear layer that gets an adapter, with the number of layers that have one like it."""
    targets = set(resolve_target_modules(spec, recipe))
    for group in spec.layers:
        for linear in group.linears:
            if linear.name in targets:
                yield linear, group.count


def adapted_experts(spec: ModelSpec, recipe: Recipe) -> Iterator[tuple[Weight, int]]:
    """Yield each router and stack of experts that gets an adapter, with the number of layers that have one like it."""
    for group in spec.layers:
        for weight in group.experts:
            if recipe.adapter is not None and recipe.adapter.expert_tensors(weight):
                yield weight, group.count


class ParameterCounts(Struct, frozen=True, kw_only=True):
    """Elements of the model's tensors under one recipe."""

    total: int
    """All of them, the adapters' included."""
    trainable: int
    quantized: int
    """Weights stored in 4 bits."""
    adapter: int
    """What peft adds: adapters, and copies of the modules to save."""
    by_part: dict[str, int]
    """The base model's, by part."""


def trained_tensors(spec: ModelSpec, recipe: Recipe) -> Iterator[TrainedTensors]:
    """Yield the tensors that train, in the order of the model, in which an optimizer steps through them.

    Those of adapters are what the method declares; modules to save and, for full fine-tuning, all of the model train as
    they are. Of layers that are alike the first is yielded by itself and the others together, so that every tensor that
    follows another does so here.

    Raises:
        UserError: target modules or modules to save that the model does not have.
    """
    saved = resolve_modules_to_save(spec, recipe)
    yield from _saved_tensors(recipe, [module for module in saved if module.embedding])
    for shape, count, embedding in _shapes(spec, recipe):
        yield TrainedTensors(shape, count, recipe.trained_dtype, embedding)
    yield from _saved_tensors(recipe, [module for module in saved if not module.embedding])


def _saved_tensors(recipe: Recipe, modules: list[SavedModule]) -> Iterator[TrainedTensors]:
    for module in modules:
        for _, shape in module.tensors:
            yield TrainedTensors(shape, 1, recipe.unquantized_dtype, module.embedding)


def _shapes(spec: ModelSpec, recipe: Recipe) -> Iterator[tuple[tuple[int, ...], int, bool]]:
    """Yield shape, number and whether it is an embedding: of adapters, or of the model's tensors where those train."""
    if recipe.adapter is None:
        for weight in spec.embeddings:
            yield weight.shape, 1, True
    targets = set(resolve_target_modules(spec, recipe))
    for group in spec.layers:
        if recipe.adapter is None:
            shapes = _full_shapes(group)
        else:
            shapes = [tensor.shape for _, tensor in _adapter_tensors(group, recipe.adapter, targets)]
        for count in (1, group.count - 1):
            if count:
                yield from ((shape, count, False) for shape in shapes)
    if recipe.adapter is None:
        for weight in spec.final_norm:
            yield weight.shape, 1, False
        if not spec.tie_word_embeddings:
            yield (spec.head.out_features, spec.head.in_features), 1, False
        if spec.head.bias:
            yield (spec.head.out_features,), 1, False


def _full_shapes(group: Layers) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    for linear in group.linears:
        shapes.append((linear.out_features, linear.in_features))
        if linear.bias:
            shapes.append((linear.out_features,))
    return [*shapes, *(weight.shape for weight in group.weights)]


def _adapter_tensors(group: Layers, adapter: Adapter, targets: Container[str]) -> Iterator[tuple[str, AdapterTensor]]:
    """Yield the tensors that each layer of ``group`` gets, with the path of what they adapt."""
    for linear in group.linears:
        if linear.name in targets:
            yield from ((linear.name, tensor) for tensor in adapter.tensors(linear))
    for path, weight in _wrapped_paths(group.experts):
        yield from ((path, tensor) for tensor in adapter.expert_tensors(weight))


def count_parameters(spec: ModelSpec, recipe: Recipe) -> ParameterCounts:
    """Return the element counts of ``spec`` under ``recipe``.

    Raises:
        UserError: target modules or modules to save that the model does not have.
    """
    adapter = 0
    if recipe.adapter is not None:
        adapter = sum(prod(alike.shape) * alike.many for alike in trained_tensors(spec, recipe))
    return ParameterCounts(
        total=spec.parameters + adapter,
        trainable=spec.parameters if recipe.adapter is None else adapter,
        quantized=spec.linear_parameters if recipe.quantization is not None else 0,
        adapter=adapter,
        by_part={str(part): count for part, count in spec.parameters_by_part.items()},
    )


def adapter_file_bytes(spec: ModelSpec, recipe: Recipe) -> int | None:
    """Return the size of the ``adapter_model.safetensors`` that peft writes; None for full fine-tuning.

    A safetensors file is the length of its header (8 bytes), the header (JSON, padded with blanks to a multiple of 8),
    and the tensors (https://huggingface.co/docs/safetensors). The header has each tensor's name, dtype, shape and
    offsets, in the order of the dtypes, then of the names.

    Raises:
        UserError: target modules or modules to save that the model does not have.
    """
    if recipe.adapter is None:
        return None
    tensors = [(recipe.trained_dtype, name, shape) for name, shape in adapter_state(spec, recipe)]
    for module in resolve_modules_to_save(spec, recipe):
        for name, shape in module.tensors:
            tensors.append((recipe.unquantized_dtype, f"base_model.model.{module.path}.{name}", shape))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for dtype, name, shape in sorted(
        tensors, key=lambda tensor: (list(SAFETENSORS_DTYPES).index(tensor[0]), tensor[1])
    ):
        start, end = end, end + prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": shape, "data_offsets": (start, end)}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Our name of a dtype → safetensors', in the order in which it writes them."""


def adapter_state(spec: ModelSpec, recipe: Recipe) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name in peft's state dict and the shape of each adapter tensor.

    Raises:
        UserError: target modules that the model does not have.
    """
    if recipe.adapter is None:
        return
    targets = set(resolve_target_modules(spec, recipe))
    first = 0
    for group in spec.layers:
        tensors = list(_adapter_tensors(group, recipe.adapter, targets))
        for index in range(first, first + group.count):
            for path, tensor in tensors:
                yield f"base_model.model.{spec.layers_path}.{index}.{path}.{tensor.name}", tensor.shape
        first += group.count


def _wrapped_paths(weights: list[Weight]) -> Iterator[tuple[str, Weight]]:
    """Yield the path of each parameter's adapter: peft wraps a module once for each, the last outermost."""
    modules = [weight.name.rpartition(".")[0] for weight in weights]
    for index, (module, weight) in enumerate(zip(modules, weights, strict=True)):
        yield module + ".base_layer" * modules[index + 1 :].count(module), weight
