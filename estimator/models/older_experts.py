"""Mixtures of experts before transformers 5, where the router and each projection of each expert are a linear layer.

So bitsandbytes quantises them, and peft adapts them one by one.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from lorabench.estimator.models.spec import Layers, Linear, ModelSpec

NAMES = {"mixtral": ("block_sparse_moe", "w1", "w2", "w3")}
"""Model type → its mixture's module, and an expert's projections: gate, down, up."""


def with_linear_experts(spec: ModelSpec) -> ModelSpec:
    """Return ``spec`` with linear layers instead of stacks of experts. A model without experts is returned as it is."""
    if not any(group.experts for group in spec.layers):
        return spec
    return replace(spec, layers=tuple(_split(group, *NAMES[spec.model_type]) for group in spec.layers))


def _split(group: Layers, mixture: str, gate: str, down: str, up: str) -> Layers:
    router, *stacks = group.experts
    experts, hidden = router.shape
    inner = next(stack.shape[2] for stack in stacks if stack.name.endswith("down_proj"))

    def linears() -> Iterator[Linear]:
        yield Linear(f"{mixture}.gate", hidden, experts, "feed_forward")
        for number in range(experts):
            path = f"{mixture}.experts.{number}"
            yield Linear(f"{path}.{gate}", hidden, inner, "feed_forward")
            yield Linear(f"{path}.{down}", inner, hidden, "feed_forward")
            yield Linear(f"{path}.{up}", hidden, inner, "feed_forward")

    others = tuple(weight for weight in group.weights if weight not in group.experts)
    return replace(group, linears=(*group.linears, *linears()), weights=others)
