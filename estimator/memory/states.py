"""Persistent memory of a recipe, term by term: weights, adapters, gradients, optimizer states.

The known rules follow from these terms: 16 B per parameter for full fine-tuning, 2P + 16·P_lora for LoRA, and 0.5 B +
0.127 bit for NF4. The list includes gradients, although they exist only from backward on.
"""

from __future__ import annotations

from math import prod

from msgspec import Struct

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.dtypes import ITEMSIZE, Dtype
from lorabench.estimator.memory.optimizers import OptimizerBytes, optimizer_bytes
from lorabench.estimator.memory.quantization import quantized_bytes
from lorabench.estimator.recipes.modules_to_save import recast_modules
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class Term(Struct, frozen=True):
    """A number of elements and their bytes."""

    component: str
    """Name of `breakdown.COMPONENTS`."""
    what: str
    elements: int
    bytes: int
    """Bytes of all elements; for quantised weights including their constants."""

    @property
    def bytes_per_element(self) -> float:
        """Bytes of one element, constants included."""
        return self.bytes / self.elements


class States(Struct, frozen=True):
    """The terms of a recipe, and the optimizer's bytes."""

    terms: tuple[Term, ...]
    optimizer: OptimizerBytes

    def component_bytes(self, component: str) -> int:
        """Return the bytes of all terms of ``component``."""
        return sum(term.bytes for term in self.terms if term.component == component)


def states(resolved: ResolvedRecipe, backend: Backend) -> States:
    """Return the persistent terms of the recipe."""
    recipe = resolved.recipe
    tensors = resolved.trained_tensors
    trained = resolved.parameters.trainable
    optimizer = optimizer_bytes(recipe.optim, tensors, backend)
    # bitsandbytes keeps the biases of 4-bit layers in the compute dtype.
    terms = base_weights(resolved, recipe.unquantized_dtype, recipe.compute_dtype, recast=recipe.recast)
    if recipe.adapter is not None:
        terms += trained_terms("adapters", recipe.adapter.weights_name, resolved, trained)
    terms += trained_terms("gradients", "gradients", resolved, trained)
    terms.append(Term("optimizer_states", f"{recipe.optim} states", trained, optimizer.states))
    return States(tuple(terms), optimizer)


def trained_terms(component: str, what: str, resolved: ResolvedRecipe, trained: int) -> list[Term]:
    """Return the terms of the ``trained`` parameters, or of their gradients.

    The first term, named ``what``, is without the modules to save; they have the second one.
    """
    saved = sum(module.parameters for module in resolved.modules_to_save)
    terms = [_term(component, what, trained - saved, resolved.recipe.trained_dtype)]
    of_saved = "modules to save" if component == "adapters" else f"{what} of modules to save"
    by_dtype: dict[Dtype, int] = {}
    for module in resolved.modules_to_save:
        dtype = resolved.recipe.dtype_of(module.path)
        by_dtype[dtype] = by_dtype.get(dtype, 0) + module.parameters
    return terms + [_term(component, of_saved, elements, dtype) for dtype, elements in by_dtype.items()]


def _term(component: str, what: str, elements: int, dtype: str) -> Term:
    return Term(component, f"{what}, {dtype}", elements, elements * ITEMSIZE[dtype])


def loaded_weights(resolved: ResolvedRecipe) -> list[Term]:
    """Return the base weights after loading, before they are prepared for training."""
    return base_weights(resolved, resolved.recipe.dtype, resolved.recipe.dtype)


def base_weights(resolved: ResolvedRecipe, dtype: str, bias_dtype: str, *, recast: bool = False) -> list[Term]:
    """Return the base weights, and the buffers of the layers.

    ``dtype``: of unquantised weights; ``bias_dtype``: of the biases of 4-bit layers; ``recast``: whether embeddings and
    head have been cast to bfloat16.
    """
    spec = resolved.spec
    quantization = resolved.recipe.quantization
    buffers = [(buffer, group.count) for group in spec.layers for buffer in group.buffers]
    held = []
    if buffers:
        elements = sum(count * prod(buffer.shape) for buffer, count in buffers)
        held.append(Term("buffers", "buffers of the layers", elements, sum(b.bytes * count for b, count in buffers)))
    if quantization is None:
        return [Term("weights", f"weights, {dtype}", spec.parameters, spec.parameters * ITEMSIZE[dtype]), *held]
    quantized = biases = 0
    for group in spec.groups:
        for linear in group.quantizable:
            size = linear.in_features * linear.out_features
            quantized += group.count * quantized_bytes(size, double_quant=quantization.double_quant).total
            biases += group.count * linear.out_features if linear.bias else 0
    other = spec.parameters - spec.linear_parameters - biases
    terms = held
    if quantized:
        what = f"linear layers, {quantization.quant_type}"
        terms.append(Term("quantized_weights", what, spec.linear_parameters, quantized))
    if recast:
        cast = sum(module.parameters for module in recast_modules(spec))
        other -= cast
        terms.append(_term("weights", "embeddings and head", cast, "bfloat16"))
    terms.append(_term("weights", "other weights", other, dtype))
    if biases:
        terms.append(Term("weights", f"biases, {bias_dtype}", biases, biases * ITEMSIZE[bias_dtype]))
    return terms
