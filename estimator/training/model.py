"""Build a recipe's model with transformers, bitsandbytes and peft: on a GPU, the CPU, or meta tensors."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lorabench.estimator.errors import UserError
from lorabench.estimator.methods.base import Adapter
from lorabench.estimator.methods.four_bit import FourBit, is_recast
from lorabench.estimator.optimizers.table import DEFAULT_OPTIMIZER, OPTIMIZERS
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.losses import set_loss

if TYPE_CHECKING:
    import torch
    from torch import nn

DeviceType = Literal["cuda", "cpu", "meta"]
NO_WATCHER = nullcontext()
"""A context that watches nothing."""


def build_model(
    resolved: ResolvedRecipe,
    device: DeviceType,
    seed: int = 0,
    *,
    weights: str | None = None,
    on_loaded: Callable[[nn.Module], None] = lambda model: None,
    watching: AbstractContextManager[object] = NO_WATCHER,
) -> nn.Module:
    """Return the model of the recipe on ``device``, ready for its first training step.

    ``weights`` is a Hub id or a folder with safetensors. Without it, the weights are random, as transformers
    initialises this architecture; equal seeds give equal base weights under every method (before quantisation).

    Quantisation, adapters, frozen weights and gradient checkpointing are those of
    ``from_pretrained(quantization_config=…)``, peft's ``prepare_model_for_kbit_training`` and ``get_peft_model``, and
    TRL's ``peft_module_casting_to_bf16`` if the recipe has that.
    Each linear layer is quantised as soon as it has its weights, so at most one layer is in memory unquantised (in
    GPT-2, one block). ``on_loaded`` is called with the base model before preparation and adapters. ``watching`` is
    entered while the tensors of a random model are made on ``device``. On meta it does not see the empty model that
    they fill, whose tensors are on meta too.

    Raises:
        UserError: the model lacks modules that the recipe names; kernels are missing; or ``weights`` cannot be loaded.
    """
    recipe = resolved.recipe
    import torch

    refuse_missing_kernels(recipe, device)
    _ = resolved.target_modules  # raises before the model is built
    torch.manual_seed(seed)
    model = _random_model(resolved, device, watching) if weights is None else _pretrained_model(weights, recipe, device)
    if recipe.quantization is not None:
        _keep_codes_in_place(model)
    on_loaded(model)
    model.config.use_cache = False
    set_loss(model, recipe)
    with watching:
        if recipe.prepared:
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        if recipe.adapter is None:
            model.requires_grad_(True)
        else:
            model = _with_adapters(model, resolved, recipe.adapter, device)
        if recipe.recast:
            _recast(model)
    if recipe.gradient_checkpointing:
        _enable_checkpointing(model, recipe)
    model.train()
    built: nn.Module = model
    return built


def refuse_missing_kernels(recipe: Recipe, device: DeviceType) -> None:
    """Refuse a recipe whose kernels do not exist for ``device`` or are not installed.

    On meta no kernel runs, so only the optimizer's package is required.

    Raises:
        UserError: the missing package or device, and an alternative; or an older transformers than runs here.
    """
    if recipe.transformers is not None:
        from transformers import __version__

        raise UserError(
            f"transformers {recipe.transformers}: only estimate and plan know older series, and this would run the "
            f"installed {__version__}: leave it out"
        )
    if recipe.keeps_inputs:
        raise UserError(
            "bitsandbytes 0.43.1: only estimate and plan know it, and this would run the installed one: leave it out"
        )
    optimizer = OPTIMIZERS[recipe.optim]
    library = optimizer.library
    if importlib.util.find_spec(library.module) is None:
        raise UserError(
            f"optim {recipe.optim} needs the package {library.package}: pip install {library.package}, or use "
            f"{DEFAULT_OPTIMIZER}"
        )
    if device == "meta":
        return
    for setting, value, package, module, instead in _cuda_only(recipe):
        if device != "cuda":
            raise UserError(f"{setting} {value} runs on CUDA only, and this is {device}: use {setting} {instead}")
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{setting} {value} needs the package {package}: pip install {package}, or use {instead}")
    if recipe.empty_cache_steps is not None and device != "cuda":
        raise UserError(f"empty_cache_steps empties the cache of CUDA's allocator, and this is {device}: leave it out")
    if optimizer.unpaged is not None and device != "cuda":
        raise UserError(
            f"optim {recipe.optim} pages states between GPU and host, and this is {device}: use {optimizer.unpaged}"
        )


def _cuda_only(recipe: Recipe) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield setting, value, package, module and alternative of what runs on CUDA only."""
    if recipe.attn_implementation == "flash_attention_2":
        yield "attn_implementation", "flash_attention_2", "flash-attn", "flash_attn", "sdpa"
    loss = recipe.fused_loss
    if loss is not None:
        yield "loss", loss.name, loss.package, loss.module, "standard"


class Recomputation:
    """Whether gradient checkpointing recomputes a layer at this moment. Meters read it."""

    running = False


@contextmanager
def _recomputing() -> Iterator[None]:
    Recomputation.running = True
    try:
        yield
    finally:
        Recomputation.running = False


def _enable_checkpointing(model: Any, recipe: Recipe) -> None:
    settings: dict[str, Any] = {"use_reentrant": recipe.use_reentrant}
    if not recipe.use_reentrant:
        settings["context_fn"] = _checkpoint_contexts
    # transformers 5.23 renamed the method; 5.17 has only the older name.
    newer = hasattr(model, "activation_checkpointing_enable")
    enable = model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable
    try:
        enable(settings)
    except ValueError as error:
        raise UserError(f"gradient_checkpointing: {error} Use --no-gradient-checkpointing") from error
    if recipe.use_reentrant:
        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = _checkpoint_reentrantly


def _checkpoint_contexts() -> tuple[Any, Any]:
    """Return the contexts of a checkpointed forward and of its recomputation: torch.utils.checkpoint's context_fn."""
    return nullcontext(), _recomputing()


def _checkpoint_reentrantly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` as reentrant checkpointing does, which has no such contexts."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(partial(_call_noted, function), *arguments, use_reentrant=True)


def _call_noted(function: Callable[..., Any], *arguments: Any) -> Any:
    import torch

    with _recomputing() if torch._C._current_autograd_node() is not None else nullcontext():
        return function(*arguments)


def _quantization_config(quantization: FourBit, recipe: Recipe) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, recipe.compute_dtype),
    )


def _pretrained_model(weights: str, recipe: Recipe, device: DeviceType) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    kept = recipe.quantization
    quantized = {} if kept is None else {"quantization_config": _quantization_config(kept, recipe)}
    try:
        return AutoModelForCausalLM.from_pretrained(
            weights,
            dtype=getattr(torch, recipe.dtype),
            attn_implementation=recipe.attn_implementation,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            **quantized,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"weights {weights}: transformers cannot load them ({error}): name a folder with config.json and "
            "*.safetensors, a hub id, or use random weights"
        ) from error


def _random_model(resolved: ResolvedRecipe, device: DeviceType, watching: AbstractContextManager[object]) -> Any:
    """Return the model with initialised weights on ``device``, with quantised linear layers if the recipe has them."""
    spec, recipe = resolved.spec, resolved.recipe
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**spec.config)
    config.use_cache = False
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, recipe.dtype), attn_implementation=recipe.attn_implementation
            )
    except ValueError as error:
        raise UserError(
            f"{spec.name}: transformers cannot build it with attn_implementation {recipe.attn_implementation} "
            f"({str(error).partition('. ')[0]}): use another, such as eager"
        ) from error
    _onto_meta(model)
    if recipe.quantization is not None:
        _materialize_quantized(model, recipe, recipe.quantization, device, watching)
    else:
        _materialize(model, device, watching)
    return model


def _onto_meta(model: nn.Module) -> None:
    """Move parameters to meta that were created elsewhere despite the context, such as by torch.normal."""
    from torch import nn

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                setattr(module, name, nn.Parameter(parameter.detach().to("meta")))


def _materialize(
    model: Any,
    device: DeviceType,
    watching: AbstractContextManager[object],
    after_module: Callable[[nn.Module], None] = lambda module: None,
) -> None:
    """Give every module of a meta model its tensors on ``device`` and initial values, children before parents.

    ``after_module`` is called with each module once it has its values. This function references only tied parameters,
    so a module that ``after_module`` replaces is freed.
    """
    import torch
    from torch import nn

    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    tied: dict[int, nn.Parameter] = {}

    def materialize(module: nn.Module) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                made = tied.get(id(parameter))
                if made is None:
                    made = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=True)
                if uses[id(parameter)] > 1:
                    tied[id(parameter)] = made
                setattr(module, name, made)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device=device)
        if device != "meta":
            model._init_weights(module)
        after_module(module)

    def visit(module: nn.Module) -> None:
        # The order of nn.Module.apply, which itself would keep all children of a module alive until the last is done.
        for name in list(module._modules):
            child = module._modules[name]
            if child is not None:
                visit(child)
                del child
        materialize(module)

    with watching, torch.no_grad():
        visit(model)


def _materialize_quantized(
    model: Any, recipe: Recipe, quantization: FourBit, device: DeviceType, watching: AbstractContextManager[object]
) -> None:
    """Materialise a meta model module by module, and quantise each linear layer before the next is allocated.

    transformers' quantizer selects the modules to quantise and creates their empty 4-bit layers, as in from_pretrained.
    """
    import bitsandbytes
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.auto import AutoHfQuantizer

    # bitsandbytes caches the first nested codebook for the whole process. This call keeps it from being one on meta.
    bitsandbytes.functional.quantize_blockwise(torch.zeros(1))
    quantizer = AutoHfQuantizer.from_config(_quantization_config(quantization, recipe))
    originals = dict(model.named_modules())
    quantizer.preprocess_model(model=model, device_map={"": device})
    shells = {name: module for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    names: dict[int, str] = {}
    for name, shell in shells.items():
        # transformers splits some stacked experts into linear layers to quantise them; the original has no such layers.
        linear = originals.get(name) or _linear_like(shell, recipe)
        names[id(linear)] = name
        model.set_submodule(name, linear)
        del linear
    del originals  # a reference to a layer's module keeps its weights alive

    def quantize(module: nn.Module) -> None:
        # GPT-2's blocks initialise the weights of their output projections again, after those modules have theirs.
        ready = [module] if not isinstance(module, Conv1D) else []
        if isinstance(module, GradientCheckpointingLayer) or module is model:
            ready = list(module.modules())
        while ready:
            linear = ready.pop()  # frees it before the next one
            name = names.pop(id(linear), None)
            if name is not None:
                model.set_submodule(name, _quantized(shells.pop(name), linear))

    _materialize(model, device, watching, after_module=quantize)
    assert not names
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer


def _keep_codes_in_place(model: nn.Module) -> None:
    """Prevent evaluation from changing the layout of 4-bit layers.

    If a layer is evaluated on a CPU with AVX512-BF16, bitsandbytes' `Linear4bit.forward` rearranges its codes for
    faster inference. That is permanent and drops the quantisation of the constants. Training cannot continue, since the
    new layout has no backward.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _linear_like(shell: Any, recipe: Recipe) -> nn.Linear:
    """Return a linear layer on meta with the shapes of bitsandbytes' layer ``shell``."""
    import torch
    from torch import nn

    dtype = getattr(torch, recipe.dtype)
    bias = shell.bias is not None
    return nn.Linear(shell.in_features, shell.out_features, bias=bias, device="meta", dtype=dtype)


def _quantized(shell: Any, linear: Any) -> Any:
    """Return bitsandbytes' empty 4-bit layer ``shell`` with the quantised weight of ``linear``.

    ``linear`` is a Linear with weight (out_features, in_features), or a Conv1D with weight (in_features, out_features).
    """
    import bitsandbytes
    from transformers.pytorch_utils import Conv1D

    weight = linear.weight.detach()
    if isinstance(linear, Conv1D):
        weight = weight.T
    empty = shell.weight
    settings = {
        "blocksize": empty.blocksize,
        "compress_statistics": empty.compress_statistics,
        "quant_type": empty.quant_type,
        "quant_storage": empty.quant_storage,
    }
    packed, state = bitsandbytes.functional.quantize_4bit(weight.contiguous(), **settings)
    shell.weight = bitsandbytes.nn.Params4bit(
        packed, requires_grad=False, quant_state=state, module=shell, bnb_quantized=True, **settings
    )
    shell.quant_state = state
    shell.bias = linear.bias
    shell.requires_grad_(False)
    # The later initialisation of the parents must not overwrite the packed codes with random values.
    shell._is_hf_initialized = shell.weight._is_hf_initialized = True
    return shell


def _with_adapters(model: Any, resolved: ResolvedRecipe, adapter: Adapter, device: DeviceType) -> Any:
    import torch
    from peft import get_peft_model

    spec, recipe = resolved.spec, resolved.recipe
    config = adapter.peft_config(
        resolved.target_modules,
        [module.path for module in resolved.modules_to_save],
        # bitsandbytes' 4-bit layers never store their weight transposed.
        transposed=recipe.quantization is None and any(linear.conv1d for linear in spec.layers[0].linears),
    )
    with torch.device(device):
        model = get_peft_model(model, config, autocast_adapter_dtype=adapter.adapter_dtype == "float32")
    dtype: torch.dtype = getattr(torch, adapter.adapter_dtype)
    for name, parameter in model.named_parameters():
        if f".{adapter.peft_prefix}" in name and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return model


def _recast(model: nn.Module) -> None:
    """Cast embeddings and head from float32 to bfloat16, as `peft_module_casting_to_bf16` of TRL 0.8 to 0.19 does.

    It also casts norms to float32, which preparation has done. TRL 0.7 and the script of QLoRA's authors cast the
    adapters to bfloat16 too, which is the recipe's ``adapter_dtype``.
    """
    import torch

    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if is_recast(name) and weight is not None and weight.dtype == torch.float32:
            module.to(torch.bfloat16)
