"""Models as transformers builds them on the meta device, for tests to hold shapes against."""

from __future__ import annotations

import re
import warnings
from typing import Any

from lorabench.estimator.models.spec import Linear, ModelSpec

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

PARTS = {
    "norm": r"norm|\bln_",
    "head": r"^lm_head",
    "embedding": r"embed_tokens|embed_in|\bwte|\bwpe",
    "attention": r"\.(self_attn|attn|attention)\.",
    "feed_forward": r"\.mlp\.",
}
"""Part → what the names of its parameters have; the first that fits counts."""


def build(config: dict[str, Any], architecture: str = "AutoModelForCausalLM") -> Any:
    """Return transformers' model of ``config``, without memory for its weights."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    logging.set_verbosity_error()
    model_class = getattr(transformers, architecture)
    from_config = getattr(model_class, "from_config", None) or model_class._from_config
    with warnings.catch_warnings(), torch.device("meta"), no_init_weights():
        warnings.simplefilter("ignore")
        model = from_config(transformers.AutoConfig.for_model(**config))
    model.tie_weights()  # left out with the initialisation
    return model


def built_shapes(config: dict[str, Any], architecture: str = "AutoModelForCausalLM") -> dict[str, tuple[int, ...]]:
    """Return the parameters of transformers' model by name, tied ones once."""
    return {name: tuple(parameter.shape) for name, parameter in build(config, architecture).named_parameters()}


def listed_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the parameters that ``spec`` lists, by name."""
    shapes = {weight.name: weight.shape for weight in (*spec.embeddings, *spec.final_norm)}
    if not spec.tie_word_embeddings:
        shapes |= _linear_shapes(spec.head, "")
    index = 0
    for group in spec.layers:
        for _ in range(group.count):
            prefix = f"{spec.layers_path}.{index}."
            for linear in group.linears:
                shapes |= _linear_shapes(linear, prefix)
            shapes |= {prefix + weight.name: weight.shape for weight in group.weights}
            index += 1
    return shapes


def _linear_shapes(linear: Linear, prefix: str) -> dict[str, tuple[int, ...]]:
    weight = (linear.out_features, linear.in_features)
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}{linear.name}.weight": weight[::-1] if linear.conv1d else weight}
    if linear.bias:
        shapes[f"{prefix}{linear.name}.bias"] = (linear.out_features,)
    return shapes


def count_by_part(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the elements of ``shapes`` by part, judged by their names."""
    from math import prod

    counts = dict.fromkeys(PARTS, 0)
    for name, shape in shapes.items():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        counts[part] += prod(shape)
    return counts
