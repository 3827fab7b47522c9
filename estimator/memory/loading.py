"""The allocations that load a model and prepare it for training, tensor by tensor.

The positions of these tensors determine which blocks the steps find free. The tensors that stay add up to the weights
and adapters of `states`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import prod
from operator import itemgetter

from lorabench.estimator.dtypes import ITEMSIZE, Dtype
from lorabench.estimator.memory.quantization import quantized_bytes
from lorabench.estimator.methods.base import Adapter
from lorabench.estimator.methods.four_bit import FourBit
from lorabench.estimator.models.spec import Layers
from lorabench.estimator.recipes.layer_tensors import adapter_tensors
from lorabench.estimator.recipes.resolved import ResolvedRecipe

Event = tuple[int, int]
"""(block, bytes) allocates; (block, 0) frees. Blocks count from 1."""
EMPTY_CACHE: Event = (0, 0)
"""What the allocator has cached is given back to the device."""


def loading(resolved: ResolvedRecipe) -> Iterator[Event]:
    """Yield the allocations and frees until the model is ready for its first step, adapters included."""
    yield from _Loading(resolved).events()


class _Loading:
    def __init__(self, resolved: ResolvedRecipe) -> None:
        self._resolved = resolved
        self._recipe = resolved.recipe
        self._blocks = 0
        self._unquantized: list[tuple[int, int, str]] = []
        """Block, elements and name of each weight that is not quantised."""
        self._prepared: list[tuple[int, int, str]] = []
        """The same after preparation, and of the copies of modules to save."""

    def events(self) -> Iterator[Event]:
        """Yield the events of loading the base model, of its preparation, and of the adapters."""
        spec, recipe = self._resolved.spec, self._recipe
        for weight in spec.embeddings:
            yield self._weight(weight.name, weight.parameters)
        for group in spec.groups:
            for _ in range(group.count):
                yield from self._layer(group)
        for weight in spec.final_norm:
            yield self._weight(weight.name, weight.parameters)
        if not spec.tie_word_embeddings:
            yield self._weight(spec.head.name, spec.head.in_features * spec.head.out_features)
        if spec.head.bias:
            yield self._weight(spec.head.name, spec.head.out_features)
        # peft's prepare_model_for_kbit_training casts one weight after the other.
        for block, elements, name in self._unquantized:
            now, cast = self._cast(block, elements, recipe.dtype, recipe.unquantized_dtype)
            yield from cast
            self._prepared.append((now, elements, name))
        if recipe.prepared:
            yield EMPTY_CACHE  # by prepare_model_for_kbit_training too
        if recipe.adapter is not None:
            yield from self._adapters(recipe.adapter)
        # TRL's peft_module_casting_to_bf16 casts embeddings and head, and their copies.
        for block, elements, name in self._prepared:
            yield from self._cast(block, elements, recipe.unquantized_dtype, recipe.dtype_of(name))[1]

    def _new(self, size: int) -> Event:
        self._blocks += 1
        return self._blocks, size

    def _weight(self, name: str, elements: int) -> Event:
        event = self._new(elements * ITEMSIZE[self._recipe.dtype])
        self._unquantized.append((event[0], elements, name))
        return event

    def _layer(self, group: Layers) -> Iterator[Event]:
        quantization = self._recipe.quantization
        for linear in group.linears:
            elements = linear.in_features * linear.out_features
            if quantization is None or not linear.quantizable:
                yield self._weight(linear.name, elements)
                if linear.bias:
                    yield self._weight(linear.name, linear.out_features)
                continue
            yield from self._quantized(elements, quantization)
            if linear.bias:
                yield self._new(linear.out_features * ITEMSIZE[self._recipe.compute_dtype])
        for weight in group.weights:
            yield self._weight(weight.name, weight.parameters)
        for buffer in group.buffers:
            yield self._new(buffer.bytes)

    def _adapters(self, adapter: Adapter) -> Iterator[Event]:
        """Yield the events of peft's `get_peft_model`.

        peft makes a layer's adapters in float32 and casts them one by one to the dtype of the layer, which is the
        compute dtype for 4-bit layers (`_move_adapter_to_device_of_base_layer`). Then it copies the modules to save. In
        the end it casts all adapters to float32 (`cast_adapter_dtype`), or lorabench to the dtype of the recipe.
        """
        resolved, recipe = self._resolved, self._recipe
        base_dtype = recipe.dtype if recipe.quantization is None else recipe.compute_dtype
        made: list[tuple[int, int]] = []
        for group in resolved.spec.groups:
            of_layer = [
                [tensor.elements for _, tensor in tensors]
                for _, tensors in groupby(
                    adapter_tensors(group, adapter, resolved.target_modules, resolved.spec.model_type), itemgetter(0)
                )
            ]
            for sizes in of_layer * group.count:
                in_float32 = [self._new(ITEMSIZE["float32"] * elements) for elements in sizes]
                yield from in_float32
                for (block, _), elements in zip(in_float32, sizes, strict=True):
                    now, cast = self._cast(block, elements, "float32", base_dtype)
                    yield from cast
                    made.append((now, elements))
        for module in resolved.modules_to_save:
            for _, shape in module.tensors:
                copy = self._new(prod(shape) * ITEMSIZE[recipe.unquantized_dtype])
                yield copy
                self._prepared.append((copy[0], prod(shape), module.path))
        for block, elements in made:
            yield from self._cast(block, elements, base_dtype, adapter.adapter_dtype)[1]

    def _cast(self, block: int, elements: int, was: Dtype, dtype: Dtype) -> tuple[int, tuple[Event, ...]]:
        """Return the block of a tensor after its cast, and the events of the cast; none if it has the dtype."""
        if was == dtype:
            return block, ()
        new = self._new(elements * ITEMSIZE[dtype])
        return new[0], (new, (block, 0))

    def _quantized(self, elements: int, quantization: FourBit) -> Iterator[Event]:
        """Yield the events of bitsandbytes' `functional.quantize_4bit` on the weight's copy on the GPU."""
        kept = quantized_bytes(elements, double_quant=quantization.double_quant)
        weight = self._new(elements * ITEMSIZE[self._recipe.dtype])
        yield weight
        if not quantization.double_quant:
            for size in (kept.absmax, kept.codes, kept.tables):
                yield self._new(size)
        else:
            absmax = self._new(4 * kept.absmax)  # float32, before its own quantisation
            yield absmax
            yield self._new(kept.codes)
            yield from map(self._new, kept.table_blocks)
            shifted = self._new(4 * kept.absmax)  # absmax minus its mean
            yield shifted
            yield self._new(kept.nested_absmax)
            yield self._new(kept.absmax)
            yield shifted[0], 0
            yield absmax[0], 0
        yield weight[0], 0
