"""How many parameters a recipe has: the model's, the adapters', those that train, those that are quantised."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from lorabench.estimator.breakdown import ParameterCounts
from lorabench.estimator.models import Linear, ModelSpec, Weight
from lorabench.estimator.recipes import Recipe
from lorabench.estimator.target_modules import resolve_target_modules


def adapted_linears(spec: ModelSpec, recipe: Recipe) -> Iterator[tuple[Linear, int]]:
    """Yield each linear layer that gets an adapter, with the number of layers that have one like it."""
    targets = set(resolve_target_modules(spec, recipe))
    for group in spec.layers:
        for linear in group.linears:
            if linear.name in targets:
                yield linear, group.count


def adapted_experts(spec: ModelSpec, recipe: Recipe) -> Iterator[tuple[Weight, int]]:
    """Yield each router and stack of experts that gets an adapter, with the number of layers that have one like it.

    They are parameters, not linear layers; peft 0.21 adapts them under all-linear only.
    """
    if recipe.target_modules == "all-linear":
        for group in spec.layers:
            for weight in group.weights:
                if weight.part == "feed_forward":
                    yield weight, group.count


def trainable_shapes(spec: ModelSpec, recipe: Recipe) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the shape of each tensor that trains, with how many there are of it.

    An adapter is A (rank, in_features) and B (out_features, rank), for a stack of experts side by side; full
    fine-tuning trains every tensor of the model.
    """
    if recipe.method != "full":
        rank = recipe.rank
        assert rank is not None
        for linear, count in adapted_linears(spec, recipe):
            yield (rank, linear.in_features), count
            yield (linear.out_features, rank), count
        for weight, count in adapted_experts(spec, recipe):
            *stack, out_features, in_features = weight.shape
            experts = prod(stack)
            yield (experts * rank, in_features), count
            yield (out_features, experts * rank), count
        return
    for weight in (*spec.embeddings, *spec.final_norm):
        yield weight.shape, 1
    for group in spec.layers:
        for linear in group.linears:
            yield (linear.out_features, linear.in_features), group.count
            if linear.bias:
                yield (linear.out_features,), group.count
        for weight in group.weights:
            yield weight.shape, group.count
    if not spec.tie_word_embeddings:
        yield (spec.head.out_features, spec.head.in_features), 1
    if spec.head.bias:
        yield (spec.head.out_features,), 1


def count_parameters(spec: ModelSpec, recipe: Recipe) -> ParameterCounts:
    """Return the element counts of ``spec`` under ``recipe``.

    Raises:
        UserError: target modules that the model does not have.
    """
    adapter = 0
    if recipe.method != "full":
        adapter = sum(prod(shape) * count for shape, count in trainable_shapes(spec, recipe))
    return ParameterCounts(
        total=spec.parameters + adapter,
        trainable=spec.parameters if recipe.method == "full" else adapter,
        quantized=spec.linear_parameters if recipe.method == "qlora" else 0,
        adapter=adapter,
        by_part={str(part): count for part, count in spec.parameters_by_part.items()},
    )
