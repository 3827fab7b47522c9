"""The blocks that are allocated before the first step, one for each tensor, in the order in which they are made.

Their bytes add up to what `states` says of weights and adapters.
"""

from __future__ import annotations

from collections.abc import Iterator

from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.memory.quantization import quantized_bytes
from lorabench.estimator.models.spec import Layers, Linear
from lorabench.estimator.recipes.resolved import ResolvedRecipe


def model_blocks(resolved: ResolvedRecipe) -> Iterator[int]:
    """Yield the bytes of each tensor of the base model as it is prepared for training, then of the adapters."""
    spec, recipe = resolved.spec, resolved.recipe
    itemsize = ITEMSIZE[recipe.unquantized_dtype]
    for weight in spec.embeddings:
        yield weight.parameters * itemsize
    for group in spec.layers:
        of_layer = list(_layer_blocks(resolved, group))
        for _ in range(group.count):
            yield from of_layer
    for weight in spec.final_norm:
        yield weight.parameters * itemsize
    if not spec.tie_word_embeddings:
        yield spec.head.in_features * spec.head.out_features * itemsize
    if spec.head.bias:
        yield spec.head.out_features * itemsize
    if recipe.adapter is not None:
        for alike in resolved.trained_tensors:
            yield from [alike.bytes] * alike.many


def _layer_blocks(resolved: ResolvedRecipe, group: Layers) -> Iterator[int]:
    recipe = resolved.recipe
    for linear in group.linears:
        yield from _linear_blocks(resolved, linear)
    for weight in group.weights:
        yield weight.parameters * ITEMSIZE[recipe.unquantized_dtype]


def _linear_blocks(resolved: ResolvedRecipe, linear: Linear) -> Iterator[int]:
    quantization = resolved.recipe.quantization
    elements = linear.in_features * linear.out_features
    dtype = resolved.recipe.unquantized_dtype
    if quantization is None:
        yield elements * ITEMSIZE[dtype]
    else:
        dtype = resolved.recipe.compute_dtype
        yield from quantized_bytes(elements, double_quant=quantization.double_quant).blocks
    if linear.bias:
        yield linear.out_features * ITEMSIZE[dtype]
