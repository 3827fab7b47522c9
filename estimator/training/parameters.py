"""Count the parameters of a built model."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from lorabench.estimator.methods.catalogue import METHODS
from lorabench.estimator.models.introspect import part_of
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.parameters import ParameterCounts

if TYPE_CHECKING:
    from torch import nn


def count_built(model: nn.Module, spec: ModelSpec) -> ParameterCounts:
    """Return the numbers of elements of a built model: tied weights count once, quantised ones unpacked."""
    parts = _parts(spec)
    by_part = {str(part): 0 for part in spec.parameters_by_part}
    trainable = quantized = adapter = 0
    marks = (
        "modules_to_save.",
        *(parts.adapter.peft_prefix for parts in METHODS.values() if parts.adapter is not None),
    )
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else math.prod(state.shape)
        trainable += count if parameter.requires_grad else 0
        quantized += count if state is not None else 0
        if any(f".{mark}" in name for mark in marks):
            adapter += count
        else:
            plain = (
                name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
            )
            plain = _without_index(plain, spec)
            # Quantisation splits some stacked experts into linear layers, which the spec does not list.
            part = parts.get(plain) or part_of(plain)
            by_part[part] = by_part.get(part, 0) + count
    total = sum(by_part.values()) + adapter
    return ParameterCounts(total=total, trainable=trainable, quantized=quantized, adapter=adapter, by_part=by_part)


def _parts(spec: ModelSpec) -> dict[str, str]:
    """Return the part of each parameter by name, without the layer's path and index."""
    parts: dict[str, str] = {weight.name: weight.part for weight in (*spec.embeddings, *spec.final_norm)}
    for linear in (spec.head, *(linear for group in spec.groups for linear in group.linears)):
        parts[f"{linear.name}.weight"] = parts[f"{linear.name}.bias"] = linear.part
    parts |= {weight.name: weight.part for group in spec.layers for weight in group.weights}
    return parts


def _without_index(name: str, spec: ModelSpec) -> str:
    return re.sub(rf"^{re.escape(spec.layers_path)}\.\d+\.", "", name)
