"""Patches that make a step on meta tensors run as on CUDA or on the CPU, one small patch per difference.

Meta tensors follow no device's code path: they have no autocast, get the slowest attention kernel, and fail at every
decision that needs a value. The patches:

- autocast (`autocast`);
- attention's kernel (`attention`), also if the package flash_attn is not installed;
- results whose dtype differs between the kernels and meta (`meta_results`);
- dropout in one kernel, with a mask of one byte per element (CUDA only);
- softmax from float16 to float32 without a copy (CUDA only; torch has no such kernel for bfloat16);
- transformers' checks whether a batch is packed, which it is not, or padded, which the recipe says;
- optimizers that select their fused or foreach implementation by device type;
- numbers that optimizers read from tensors, which change no size (`stepping_on_meta`);
- optimizers' Triton kernels, which do not run on meta tensors;
- paged optimizer states, which are in unified memory and so outside the caching allocator;
- temporaries that kernels allocate within one operator (`scratch`).

By default transformers runs all experts as one grouped matmul, so no size depends on the routing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.trace.attention import cpu_attention, cuda_attention, flash_attention_2
from lorabench.estimator.trace.autocast import MetaAutocast, autocast_on_meta
from lorabench.estimator.trace.meta_results import MetaResults, results_on_meta
from lorabench.estimator.training import fused_loss_on_meta
from lorabench.estimator.training.patches import replaced

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def building_on_meta() -> Iterator[None]:
    """Let transformers and peft build a model on meta as on a GPU, even if flash_attn is not installed.

    The context also skips random initialisation: it takes time, and meta tensors have no values.
    """
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import init
    from transformers import modeling_flash_attention_utils as flash
    from transformers import modeling_utils

    prepare_arguments = flash._lazy_define_process_function(flash_attention_2)
    # transformers 5.17 has one function that prepares arguments; 5.23 has a second one for key-value caches.
    one = not hasattr(flash, "_process_with_kvcache_kwargs_fn")
    functions = (flash_attention_2, None, None, None, None), prepare_arguments if one else (prepare_arguments, dict)

    def import_flash_attention(*_: Any, **__: Any) -> Any:
        return functions

    with ExitStack() as patches:
        for owner in (flash, modeling_utils):
            patches.enter_context(replaced(owner, "lazy_import_flash_attention", import_flash_attention))
        patches.enter_context(
            replaced(modeling_utils.PreTrainedModel, "_flash_attn_import_error", lambda *_, **__: None)
        )
        patches.enter_context(replaced(init, "kaiming_uniform_", lambda tensor, *_, **__: tensor))
        # Otherwise transformers looks for a build of the kernel on the Hub.
        patches.enter_context(replaced(modeling_utils, "is_kernels_available", lambda: False))
        for layer in (BaseTunerLayer, ParamWrapper):
            patches.enter_context(replaced(layer, "_move_adapter_to_device_of_base_layer", _cast_adapter))
        yield


def _cast_adapter(layer: Any, adapter_name: str, device: torch.device | None = None) -> None:
    """Cast a new adapter to the dtype of its base layer, as peft does on a GPU; peft itself skips meta tensors.

    The cast frees the original, so it leaves free blocks between the adapters. If adapters train in float32, peft casts
    them back later.
    """
    from torch import nn

    if hasattr(layer, "get_param"):  # experts are a parameter, not a layer
        dtype = layer.get_param().dtype
    else:
        _, dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())
    for name in (*layer.adapter_layer_names, *layer.other_param_names):
        adapters = getattr(layer, name, None)
        if isinstance(adapters, nn.ModuleDict | nn.ParameterDict) and adapter_name in adapters:
            adapters[adapter_name] = adapters[adapter_name].to(dtype=dtype)


@contextmanager
def running_on_meta(
    model: nn.Module,
    backend: Backend,
    results: MetaResults | None = None,
    compute_capability: str | None = None,
    *,
    padding: bool = False,
) -> Iterator[None]:
    """Run steps of ``model``, which is on meta, as on a device of ``backend``, with ``padding`` in the batches or not.

    ``compute_capability`` (of `Device`) selects the kernels of attention (`sdpa_kernel`) and of a fused loss. Pass
    ``results`` if a dispatch mode of the caller, such as a ledger's, already runs the operators through them; otherwise
    this context adds a mode.
    """
    import torch
    from transformers import masking_utils
    from transformers import modeling_flash_attention_utils as flash

    with ExitStack() as stack:
        stack.enter_context(building_on_meta())
        stack.enter_context(replaced(masking_utils, "find_packed_sequence_indices", _no_packed_sequences))
        if padding:  # linear attention and convolutions read their mask, which is not boolean, unless they are traced
            stack.enter_context(replaced(masking_utils, "is_tracing", lambda tensor: tensor.dtype != torch.bool))
        stack.enter_context(replaced(flash, "_is_packed_sequence", lambda position_ids, batch_size: False))
        stack.enter_context(replaced(masking_utils, "fast_all", partial(_all, found=not padding)))
        stack.enter_context(replaced(fused_loss_on_meta, "compute_capability", compute_capability))
        stack.enter_context(_optimizers_on_meta(backend))
        autocast = stack.enter_context(autocast_on_meta(model, backend))
        stack.enter_context(_operators_on_meta(backend, autocast, compute_capability))
        if results is None:
            stack.enter_context(results_on_meta(MetaResults(backend)))
        yield


# Operators


@contextmanager
def _operators_on_meta(backend: Backend, autocast: MetaAutocast, compute_capability: str | None) -> Iterator[None]:
    """Cast the arguments of torch's functions as autocast does, and run the implementation of ``backend``."""
    import torch
    from torch.overrides import TorchFunctionMode

    functional = torch.nn.functional
    implementations: dict[Any, Callable[..., Any]]
    if backend == "cuda":
        implementations = {
            functional.scaled_dot_product_attention: partial(cuda_attention, compute_capability=compute_capability),
            functional.dropout: _fused_dropout,
            functional.softmax: _softmax,
        }
    else:
        implementations = {functional.scaled_dot_product_attention: cpu_attention}

    plans: dict[Any, tuple[Callable[..., Any], str | None]] = {}

    class OnMeta(TorchFunctionMode):
        """Intercepts every call of a torch function before autograd."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            plan = plans.get(func)
            if plan is None:
                name = func.__name__ if autocast.casts(func.__name__) else None
                plan = plans[func] = implementations.get(func, func), name
            implementation, cast_as = plan
            if cast_as is None or not autocast.enabled:
                return implementation(*args, **(kwargs or {}))
            args, kwargs = autocast.cast(cast_as, args, kwargs or {})
            return implementation(*args, **kwargs)

    mode = OnMeta()
    engine: Any = torch.autograd
    run_backward = engine._engine_run_backward

    def run_backward_seen(*args: Any, **kwargs: Any) -> Any:
        # A mode is disabled while it handles a call, such as backward(). Recomputation, inside it, needs the mode.
        with mode:
            return run_backward(*args, **kwargs)

    with mode, replaced(engine, "_engine_run_backward", run_backward_seen):
        yield


def _fused_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:  # noqa: A002 - torch's name
    """Return dropout of ``input``, in its shape, by CUDA's fused kernel. Its mask has one byte per element."""
    import torch

    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


def _softmax(input: torch.Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> torch.Tensor:  # noqa: A002 - torch's name
    """Return softmax of ``input``, in its shape. On CUDA one kernel reads float16 and writes float32."""
    import torch

    if input.dtype == torch.float16 and dtype == torch.float32:
        return torch._softmax(input, dim, True)
    return torch.nn.functional.softmax(input, dim, dtype=dtype)


def _no_packed_sequences(position_ids: torch.Tensor) -> None:
    """Make the allocations of transformers' search for packed sequences, and find none.

    ``position_ids`` are (batch, length). The source is `find_packed_sequence_indices` of transformers' `masking_utils`.
    """
    import torch

    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    (steps != 1).cumsum(-1)


def _all(mask: torch.Tensor, *, found: bool) -> bool:
    """Make the allocations of transformers' search for padding (`fast_all`), and return ``found``."""
    mask.sum() == mask.numel()  # noqa: B015 - it allocates
    return found


# Optimizers


@contextmanager
def _optimizers_on_meta(backend: Backend) -> Iterator[None]:
    """Let torch's optimizers select the implementation on meta that they select for ``backend``.

    Fused implementations exist for CUDA and the CPU, foreach implementations for CUDA only.
    """
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    torch_optimizer: Any = optimizer
    fused = torch_optimizer._get_fused_kernels_supported_devices()
    foreach = torch_optimizer._get_foreach_kernels_supported_devices()
    if backend == "cuda":
        foreach = [*foreach, "meta"]
    with ExitStack() as patches:
        patches.enter_context(
            replaced(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused, "meta"])
        )
        for module in (torch_optimizer, _foreach_utils):  # the latter's for gradient clipping
            patches.enter_context(replaced(module, "_get_foreach_kernels_supported_devices", lambda: foreach))
        patches.enter_context(_paged_states())
        yield


@contextmanager
def stepping_on_meta(optimizer: torch.optim.Optimizer, backend: Backend, results: MetaResults) -> Iterator[None]:
    """Run steps of ``optimizer`` as on a device of ``backend``, inside `running_on_meta`.

    A number that a step reads from a tensor, such as the norm of an update, only scales other tensors: it reads 1.
    """

    def read_numbers(*_: Any) -> None:
        results.reads_numbers = True

    def read_none(*_: Any) -> None:
        results.reads_numbers = False

    module = sys.modules[type(optimizer).__module__]
    hooks = optimizer.register_step_pre_hook(read_numbers), optimizer.register_step_post_hook(read_none)
    with ExitStack() as patches:
        for hook in hooks:
            patches.callback(hook.remove)
        if backend == "cuda" and module.__name__ == "optimi.stableadamw":
            for group in optimizer.param_groups:
                group["triton"] = True
            # Its Triton kernels allocate nothing.
            patches.enter_context(replaced(module, "stableadamw", lambda **_: None))
        yield


@contextmanager
def _paged_states() -> Iterator[None]:
    """Allocate no device memory for bitsandbytes' paged states.

    They are in unified memory (`cget_managed_ptr`), which CUDA's caching allocator does not count either. torch treats
    them as CPU tensors.
    """
    try:
        from bitsandbytes import functional
    except ImportError:
        yield
        return

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        import torch

        states: Any = torch.empty(0, dtype=dtype)
        states.is_paged = True
        return states  # type: ignore[no-any-return]

    with ExitStack() as patches:
        patches.enter_context(replaced(functional, "get_paged", get_paged))
        for moved in ("fill", "prefetch_tensor"):
            patches.enter_context(replaced(functional, moved, lambda *_, **__: None))
        yield
