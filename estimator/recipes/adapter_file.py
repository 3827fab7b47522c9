"""The file in which peft saves an adapter: its tensors by name, and its size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod

from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.recipes.layer_tensors import adapter_tensors
from lorabench.estimator.recipes.resolved import ResolvedRecipe

SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Our name of a dtype → its name in safetensors, in safetensors' order."""


def adapter_file_bytes(resolved: ResolvedRecipe) -> int | None:
    """Return the size of the ``adapter_model.safetensors`` that peft writes; None for full fine-tuning.

    A safetensors file has the length of its header (8 bytes), the header (JSON, padded with blanks to a multiple of 8),
    and the tensors (https://huggingface.co/docs/safetensors). The header has each tensor's name, dtype, shape and
    offsets, sorted by dtype, then by name.

    Raises:
        UserError: the model lacks target modules or modules to save.
    """
    recipe = resolved.recipe
    if recipe.adapter is None:
        return None
    tensors = [(recipe.trained_dtype, name, shape) for name, shape in adapter_state(resolved)]
    for module in resolved.modules_to_save:
        for name, shape in module.tensors:
            tensors.append((recipe.dtype_of(module.path), f"base_model.model.{module.path}.{name}", shape))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for dtype, name, shape in sorted(
        tensors, key=lambda tensor: (list(SAFETENSORS_DTYPES).index(tensor[0]), tensor[1])
    ):
        start, end = end, end + prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": shape, "data_offsets": (start, end)}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def adapter_state(resolved: ResolvedRecipe) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name in peft's state dict and the shape of each adapter tensor.

    Raises:
        UserError: the model lacks target modules.
    """
    spec, adapter = resolved.spec, resolved.recipe.adapter
    if adapter is None:
        return
    first = 0
    for group in spec.layers:
        tensors = list(adapter_tensors(group, adapter, resolved.target_modules, spec.model_type))
        for index in range(first, first + group.count):
            for path, tensor in tensors:
                yield f"base_model.model.{spec.layers_path}.{index}.{path}.{tensor.name}", tensor.shape
        first += group.count
