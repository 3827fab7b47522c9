"""A recipe together with the model that it trains.

A recipe alone only names modules, such as ``all-linear``; which tensors those are depends on the model. Code that needs
them takes a `ResolvedRecipe`. It computes each property once, on first use.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from lorabench.estimator.models.spec import Linear, ModelSpec, Weight
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.recipes.layer_tensors import adapter_tensors, base_shapes
from lorabench.estimator.recipes.modules_to_save import SavedModule, resolve_modules_to_save
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.target_modules import resolve_target_modules


class ResolvedRecipe(Struct, frozen=True, dict=True, omit_defaults=True):
    """A recipe on one model, with the modules and tensors that it trains.

    The properties that look up modules raise a UserError if the model does not have them.
    """

    spec: ModelSpec
    recipe: Recipe
    assumptions: tuple[str, ...] = ()
    """Settings and model names that the user did not choose and that are not the defaults: one line each, with the
    reason."""

    def replaced(self, **fields: Any) -> Self:
        """Return this recipe with other values of some fields of `Recipe`, on the same model."""
        return replace(self, recipe=replace(self.recipe, **fields))

    def with_rank(self, rank: int | None) -> Self:
        """Return this recipe with another rank of its adapters, on the same model."""
        return replace(self, recipe=self.recipe.with_rank(rank))

    def without_checkpointing(self) -> Self:
        """Return this recipe without gradient checkpointing, on the same model."""
        return self.replaced(gradient_checkpointing=False, use_reentrant=False)

    @cached_property
    def digest(self) -> str:
        """The 12 hex digits of `Recipe.digest` on this model."""
        return self.recipe.digest(self.spec.encoded_config)

    @cached_property
    def target_modules(self) -> tuple[str, ...]:
        """`Linear.name` of every linear layer that gets an adapter (`resolve_target_modules`)."""
        return resolve_target_modules(self.spec, self.recipe.adapter)

    @cached_property
    def modules_to_save(self) -> tuple[SavedModule, ...]:
        """The modules that train in full beside the adapters, in the order of the model."""
        return resolve_modules_to_save(self.spec, self.recipe.modules_to_save)

    @cached_property
    def adapted_linears(self) -> tuple[tuple[Linear, int], ...]:
        """Each kind of linear layer that gets an adapter, with the number of decoder layers that have it."""
        return tuple(
            (linear, group.count)
            for group in self.spec.groups
            for linear in group.linears
            if linear.name in self.target_modules
        )

    @cached_property
    def adapted_experts(self) -> tuple[tuple[Weight, int], ...]:
        """Each kind of router and stack of experts that gets an adapter, with the number of decoder layers."""
        adapter = self.recipe.adapter
        if adapter is None:
            return ()
        return tuple(
            (weight, group.count)
            for group in self.spec.layers
            for weight in group.adapted_experts
            if adapter.expert_tensors(weight, self.spec.model_type)
        )

    @cached_property
    def trained_tensors(self) -> tuple[TrainedTensors, ...]:
        """The trained tensors in the order of the model, which is that of the optimizer's step.

        With an adapter, they are the tensors that the method declares, and the modules to save; without one, all
        parameters of the model. For several identical layers, the first has entries of its own and the others share
        one per tensor. So each pair of consecutive tensors in the model is also consecutive here.
        """
        return tuple(self._trained_tensors())

    def _trained_tensors(self) -> Iterator[TrainedTensors]:
        recipe = self.recipe
        yield from self._saved_tensors(embeddings=True)
        for shape, count, embedding in self._base_tensors() if recipe.adapter is None else self._adapter_tensors():
            yield TrainedTensors(shape, count, recipe.trained_dtype, embedding)
        yield from self._saved_tensors(embeddings=False)

    def _saved_tensors(self, *, embeddings: bool) -> Iterator[TrainedTensors]:
        for module in self.modules_to_save:
            if module.embedding == embeddings:
                for _, shape in module.tensors:
                    yield TrainedTensors(shape, 1, self.recipe.dtype_of(module.path), module.embedding)

    def _adapter_tensors(self) -> Iterator[tuple[tuple[int, ...], int, bool]]:
        adapter = self.recipe.adapter
        assert adapter is not None
        spec = self.spec
        for group in spec.groups:
            shapes = [
                tensor.shape for _, tensor in adapter_tensors(group, adapter, self.target_modules, spec.model_type)
            ]
            yield from _in_layers(shapes, group.count)

    def _base_tensors(self) -> Iterator[tuple[tuple[int, ...], int, bool]]:
        spec = self.spec
        for weight in spec.embeddings:
            yield weight.shape, 1, True
        for group in spec.groups:
            yield from _in_layers(base_shapes(group), group.count)
        for weight in spec.final_norm:
            yield weight.shape, 1, False
        if not spec.tie_word_embeddings:
            yield (spec.head.out_features, spec.head.in_features), 1, False
        if spec.head.bias:
            yield (spec.head.out_features,), 1, False

    @cached_property
    def parameters(self) -> ParameterCounts:
        """The numbers of parameters: total, trainable and quantised."""
        spec, recipe = self.spec, self.recipe
        adapter = 0
        if recipe.adapter is not None:
            adapter = sum(group.elements * group.count for group in self.trained_tensors)
        return ParameterCounts(
            total=spec.parameters + adapter,
            trainable=spec.parameters if recipe.adapter is None else adapter,
            quantized=spec.linear_parameters if recipe.quantization is not None else 0,
            adapter=adapter,
            by_part={str(part): count for part, count in spec.parameters_by_part.items()},
        )


def _in_layers(shapes: list[tuple[int, ...]], layers: int) -> Iterator[tuple[tuple[int, ...], int, bool]]:
    """Yield (shape, count, is embedding) for the tensors of the first layer, then for those of all other layers."""
    for count in (1, layers - 1):
        if count:
            yield from ((shape, count, False) for shape in shapes)
