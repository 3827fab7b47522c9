"""Estimates of architectures without a closed form, from the trace of their real step.

They need torch, transformers, peft and some seconds. The closed form needs none of these packages, and milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.states import Term, trained_terms
from lorabench.estimator.models.read_config import no_closed_form
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.resolved import ResolvedRecipe

if TYPE_CHECKING:
    from lorabench.estimator.trace.trace import Trace


def trace_for_estimate(
    resolved: ResolvedRecipe,
    compute_capability: str | None,
    multiprocessors: int | None,
    on_progress: Callable[[str], None] = lambda what: None,
    backend: Backend = "cuda",
    *,
    allocator: AllocatorSettings = DEFAULTS,
) -> Trace:
    """Return the trace of the recipe, for a GPU's ``compute_capability`` and number of ``multiprocessors``.

    Raises:
        UserError: the recipe cannot be traced, or a package that the trace needs is not installed.
    """
    spec = resolved.spec
    try:
        from lorabench.estimator.trace.trace import trace

        return trace(
            resolved,
            backend=backend,
            compute_capability=compute_capability,
            multiprocessors=multiprocessors,
            allocator=allocator,
            on_progress=on_progress,
        )
    except ImportError as error:
        raise UserError(
            f"{spec.name}: {no_closed_form(spec.model_type)}, and a trace needs {error.name}, which is not "
            "installed: pip install 'lorabench[bench]'"
        ) from error


def traced_terms(resolved: ResolvedRecipe, traced: Trace) -> tuple[Term, ...]:
    """Return the persistent terms of the recipe, with the bytes of its trace."""
    return tuple(_terms(resolved, traced.parameters, traced.memory.components))


def _terms(resolved: ResolvedRecipe, counts: ParameterCounts, bytes_: dict[str, int]) -> Iterator[Term]:
    recipe = resolved.recipe
    trained = counts.trainable
    if recipe.quantization is not None and counts.quantized:
        what = f"linear layers, {recipe.quantization.quant_type}"
        yield Term("quantized_weights", what, counts.quantized, bytes_["quantized_weights"])
    others = counts.total - counts.quantized - (0 if recipe.adapter is None else trained)
    yield Term("weights", "other weights" if counts.quantized else "weights", others, bytes_["weights"])
    if recipe.adapter is not None:
        yield from trained_terms("adapters", recipe.adapter.weights_name, resolved, trained)
    yield from trained_terms("gradients", "gradients", resolved, trained)
    yield Term("optimizer_states", f"{recipe.optim} states", trained, bytes_["optimizer_states"])
