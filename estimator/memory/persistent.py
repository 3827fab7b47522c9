"""Persistent memory by phase: the tensors that stay allocated from step to step.

Only this module determines the phases in which each tensor exists.
The closed form (`closed_form`) has the memory that a step allocates and frees. The total is the sum of both.
"""

from __future__ import annotations

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.memory.breakdown import COMPONENTS
from lorabench.estimator.memory.clipping import clipping_peak
from lorabench.estimator.memory.states import loaded_weights, states
from lorabench.estimator.memory.workspaces import workspaces
from lorabench.estimator.recipes.resolved import ResolvedRecipe

PersistentBytes = dict[str, dict[str, int]]
"""Phase (of `breakdown.PHASES`) → component → bytes."""


def persistent_bytes(resolved: ResolvedRecipe, backend: Backend, compute_capability: str | None) -> PersistentBytes:
    """Return the bytes of weights, adapters, optimizer states, workspaces and, between micro-batches, gradients.

    The phase ``optimizer`` includes the temporaries of gradient clipping or of the optimizer, whichever are larger,
    since they depend on the same tensors. The cuBLAS workspaces are those of ``compute_capability``; see `workspaces`
    for None.
    """
    of_recipe = states(resolved, backend)
    loaded = dict.fromkeys(COMPONENTS, 0)
    for term in loaded_weights(resolved):
        loaded[term.component] += term.bytes
    adapted = dict.fromkeys(COMPONENTS, 0)
    for name in ("weights", "quantized_weights", "adapters", "buffers"):
        adapted[name] = of_recipe.component_bytes(name)
    training = adapted | {"optimizer_states": of_recipe.component_bytes("optimizer_states")}
    if backend == "cuda":
        training["workspaces"] = workspaces(compute_capability).bytes
    if resolved.recipe.gradient_accumulation > 1:
        # With a single micro-batch, backward makes the gradients and zero_grad frees them after the step.
        training["gradients"] = of_recipe.component_bytes("gradients")
    clipping = clipping_peak(resolved.trained_tensors) if backend == "cuda" else 0
    return {
        "loaded": loaded,
        "adapted": adapted,
        "forward": training,
        "backward": training,
        "optimizer": training | {"temporaries": max(clipping, of_recipe.optimizer.temporaries)},
    }
