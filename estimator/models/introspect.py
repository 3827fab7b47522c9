"""Read the shapes of any causal language model that transformers can build, from the model built on meta.

Architectures without a file in `families` get their `ModelSpec` here. It needs torch and transformers, and about a
second.
"""

from __future__ import annotations

import re
from collections.abc import Container
from itertools import groupby
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.models.causal_types import causal_model_types
from lorabench.estimator.models.config_fields.fields import MOST_LAYERS
from lorabench.estimator.models.recordings import NO_SHAPES, TOKENS
from lorabench.estimator.models.spec import Buffer, Layers, Linear, ModelSpec, Part, Weight
from lorabench.estimator.quiet import quiet_libraries
from lorabench.estimator.working_folder import require_working_folder

if TYPE_CHECKING:
    from torch import nn

PARTS: dict[Part, str] = {
    "norm": r"norm|(^|\.)ln_|layernorm",
    "embedding": r"embed|(^|\.)w[tp]e\b",
    "attention": r"attn|attention",
    "feed_forward": r"mlp|ffn|feed_?forward|expert|moe|(^|\.)fc\d",
}
"""Part → substrings of its modules' paths, in any case. The first match counts; without a match the part is "other"."""


@quiet_libraries()
def introspect(config: dict[str, Any], name: str) -> ModelSpec:
    """Return the shapes of the model that transformers builds from ``config``, the contents of a config.json.

    The spec's ``config`` has the given keys, except those that affect neither shapes nor the training step. A size is 0
    if the architecture has no name for it.

    Raises:
        UserError: transformers cannot build it as a causal language model, it has no list of layers, or the working
            folder was deleted.
        ImportError: torch or transformers is not installed.
    """
    model_type, known = config["model_type"], causal_model_types()
    if model_type not in known:
        raise UserError(
            f"{name}: the installed transformers has no causal language model of model_type {quoted(model_type)}: "
            f"correct it ({did_you_mean(model_type, known)}), or install a transformers that has it"
        )
    require_working_folder()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shapes = {key: value for key, value in config.items() if key not in NO_SHAPES}
    tokens = dict.fromkeys(TOKENS)
    try:
        with torch.device("meta"):
            try:
                built = AutoConfig.for_model(**shapes, **tokens)
            except Exception:  # some architectures require these keys
                tokens = {key: config[key] for key in tokens if key in config}
                built = AutoConfig.for_model(**shapes, **tokens)
            _refuse_many_layers(built.get_text_config(), name)
            model = AutoModelForCausalLM.from_config(built)
    except UserError:
        raise
    except Exception as error:  # the architecture's own code may raise anything for a wrong config
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name}: transformers cannot build this {model_type} ({type(error).__name__}: {reason}): "
            "correct the config.json"
        ) from error
    if attends_to_later_tokens(built, model):
        raise UserError(f"{name}: this {model_type} attends to later tokens, so it is not a causal language model")
    return spec_of(model, built.get_text_config(), {**shapes, **tokens}, name)


def _refuse_many_layers(sizes: Any, name: str) -> None:
    layers = getattr(sizes, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise UserError(f"{name}: num_hidden_layers must be at most {MOST_LAYERS:,}, got {quoted(layers)}")


def attends_to_later_tokens(config: Any, model: nn.Module) -> bool:
    """Return whether ``model`` is an encoder, or has one, so that it is not a causal language model."""
    causal = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    return bool(getattr(config, "is_encoder_decoder", False)) or (bool(causal) and not any(causal))


def spec_of(model: Any, sizes: Any, config: dict[str, Any], name: str) -> ModelSpec:
    """Return the shapes of ``model``, which is on meta and cannot be used afterwards if it has stacks of experts.

    ``sizes``: transformers' config of the text model; ``config``: what the spec keeps as its config.

    Raises:
        UserError: it has no list of layers, or no embedding and head of the same vocabulary.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    path, layers = layers_of(model, _size(sizes, "num_hidden_layers"), name)
    if embedding is None or head is None:
        raise UserError(f"{name}: a {config['model_type']} has no embedding and head of the same vocabulary")
    tied = head.weight is embedding.weight
    outside = {
        key: module
        for key, module in model.named_modules()
        if _is_linear(module) and module is not head and not key.startswith(f"{path}.")
    }
    owned = [parameter for module in (head, *outside.values()) for parameter in module.parameters()]
    apart = [
        Weight(parameter_name, tuple(parameter.shape), part_of(parameter_name))
        for parameter_name, parameter in model.named_parameters()
        if not parameter_name.startswith(f"{path}.") and not any(parameter is own for own in owned)
    ]
    tokens = [
        Weight(parameter_name, tuple(parameter.shape), "embedding")
        for parameter_name, parameter in model.named_parameters()
        if parameter is embedding.weight
    ]
    tables = [*tokens, *(weight for weight in apart if weight.part == "embedding" and weight not in tokens)]
    quantized = _quantized_modules(model)
    count, described = len(layers), described_layers(model, path)
    final = tuple(weight for weight in apart if weight not in tables)
    head_linear = _linear(next(key for key, module in model.named_modules() if module is head), head, "head")
    adapts = _adapts_experts(model, layers)
    groups = tuple(replace(layer, count=len(list(group)), adapts_experts=adapts) for layer, group in groupby(described))
    heads = _size(sizes, "num_attention_heads")
    hidden: int = _size(sizes, "hidden_size") or embedding.weight.shape[1]
    return ModelSpec(
        name=name,
        model_type=config["model_type"],
        config=config,
        hidden_size=hidden,
        intermediate_size=_size(sizes, "intermediate_size"),
        num_hidden_layers=count,
        num_attention_heads=heads,
        num_key_value_heads=_size(sizes, "num_key_value_heads") or heads,
        head_dim=_size(sizes, "head_dim") or (hidden // heads if heads else 0),
        vocab_size=head.weight.shape[0],
        max_position_embeddings=_size(sizes, "max_position_embeddings"),
        tie_word_embeddings=tied,
        embeddings=tuple(tables),
        layers=groups,
        final_norm=final,
        head=head_linear,
        layers_path=path,
        outside=tuple(
            _linear(key, module, part_of(key), quantizable=key in quantized) for key, module in outside.items()
        ),
        has_sdpa=bool(getattr(model, "_supports_sdpa", True)),
    )


def _adapts_experts(model: Any, layers: nn.ModuleList) -> bool:
    """Return whether peft's LoRA under all-linear adapts stacked experts too, as it does for some model types.

    The model cannot be used afterwards: the function removes all layers but one. With all layers, peft needs a second.
    """
    from peft import LoraConfig, get_peft_model

    stacked = next((layer for layer in layers if any(parameter.dim() > 2 for parameter in layer.parameters())), None)
    if stacked is None:
        return False
    del layers[:]
    layers.append(stacked)
    try:
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    except ValueError:  # peft has no adapter for this model; a trace then reports it
        return False
    return bool(adapted.base_model.targeted_parameter_names)


def _size(config: Any, name: str) -> int:
    """Return a size by its name in transformers; 0 if the architecture has no such size, or it differs between
    layers."""
    try:
        size = getattr(config, name, None)
    except RuntimeError:  # transformers raises it for sizes that differ between layers
        return 0
    return size if isinstance(size, int) else 0


def layers_of(model: nn.Module, count: int, name: str) -> tuple[str, nn.ModuleList]:
    """Return the list of decoder layers and its path: the outermost list with ``count`` entries.

    Some architectures count each layer several times. So if there is no such list, a list is returned whose length
    divides ``count``.
    """
    from torch import nn

    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists.sort(key=lambda pair: pair[0].count("."))
    equal = [pair for pair in lists if len(pair[1]) == count]
    for path, module in equal or [pair for pair in lists if len(pair[1]) > 1 and count % len(pair[1]) == 0]:
        return path, module
    raise UserError(f"{name}: the model that transformers builds has no list of {count} layers")


def described_layers(model: Any, path: str) -> list[Layers]:
    """Return the tensors of each layer in the list at ``path`` of ``model``."""
    quantized = _quantized_modules(model)
    return [
        Layers(1, _linears_of(layer, f"{path}.{number}", quantized), weights_of(layer), buffers=_buffers_of(layer))
        for number, layer in enumerate(model.get_submodule(path))
    ]


def _quantized_modules(model: Any) -> set[str]:
    """Return the paths of the modules that transformers lets bitsandbytes replace (`replace_with_bnb_linear`)."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return {
        path
        for path, module in model.named_modules()
        if (isinstance(module, Conv1D) or type(module) is nn.Linear) and should_convert_module(path, kept)
    }


def _linears_of(layer: nn.Module, path: str, quantized: Container[str]) -> tuple[Linear, ...]:
    """Return the linear layers of ``layer``, which is at ``path``, in its order."""
    return tuple(
        _linear(name, module, part_of(name), quantizable=f"{path}.{name}" in quantized)
        for name, module in layer.named_modules()
        if _is_linear(module)
    )


def _buffers_of(layer: nn.Module) -> tuple[Buffer, ...]:
    """Return the buffers of ``layer``, in its order."""
    return tuple(Buffer(path, tuple(buffer.shape), buffer.element_size()) for path, buffer in layer.named_buffers())


def weights_of(layer: nn.Module) -> tuple[Weight, ...]:
    """Return the parameters of ``layer`` outside its linear layers, in its order."""
    owned = {id(parameter) for module in layer.modules() if _is_linear(module) for parameter in module.parameters()}
    return tuple(
        Weight(path, tuple(parameter.shape), part_of(path))
        for path, parameter in layer.named_parameters()
        if id(parameter) not in owned
    )


def _is_linear(module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _linear(path: str, module: Any, part: Part, *, quantizable: bool = True) -> Linear:
    from torch import nn

    conv1d = not isinstance(module, nn.Linear)
    out_features, in_features = module.weight.shape[::-1] if conv1d else module.weight.shape
    return Linear(
        path, in_features, out_features, part, bias=module.bias is not None, conv1d=conv1d, quantizable=quantizable
    )


def part_of(path: str) -> Part:
    """Return the part of the model that a parameter belongs to. ``path``: within the layer or the model."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, path, re.IGNORECASE)), "other")
