"""What meta tensors must be told to behave as on CUDA, or as on the CPU: each departure is one small piece here.

Meta tensors take the path of no device in particular: they know no autocast, take the slowest attention, and every
decision that needs a value fails. The pieces:

- autocast (`autocast`);
- the kernel that attention takes (`attention`), also where the package flash_attn is not installed;
- results that kernels give in other dtypes than meta does (`meta_results`);
- dropout in one kernel, with a mask of one byte an element (CUDA only);
- softmax from float16 into float32 without a copy (CUDA only; torch does not do it for bfloat16);
- transformers' questions whether a batch packs several sequences, or pads them: it does not;
- optimizers that take their fused or foreach implementation only on devices they know;
- numbers that optimizers read of tensors, which change no size (`stepping_on_meta`);
- optimizers' kernels that are written in Triton, which meta tensors cannot run;
- paged optimizer states, which lie in unified memory and so outside the caching allocator;
- what kernels allocate within one operator (`scratch`).

With transformers' default implementation of experts, one grouped matrix product over all of them, no size depends on
where the tokens are routed.
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
from lorabench.estimator.training.patches import replaced

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def building_on_meta() -> Iterator[None]:
    """Let transformers build a model for flash_attention_2 where the package flash_attn is not installed.

    Random values, which no tensor on meta has, are not asked for: that takes time.
    """
    from torch.nn import init
    from transformers import modeling_flash_attention_utils as flash
    from transformers import modeling_utils

    prepare_arguments = flash._lazy_define_process_function(flash_attention_2)
    # transformers 5.17 has one function to prepare arguments, 5.23 has another for key-value caches.
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
        # Without this, transformers would look for a build of the kernel on the hub.
        patches.enter_context(replaced(modeling_utils, "is_kernels_available", lambda: False))
        yield


@contextmanager
def running_on_meta(
    model: nn.Module,
    kernels: Backend,
    results: MetaResults | None = None,
    compute_capability: str | None = None,
) -> Iterator[None]:
    """Let steps of ``model``, which lies on meta, go as on a device that runs ``kernels``.

    ``compute_capability`` (of `Device`) decides which kernel attention takes (`sdpa_kernel`).
    ``results`` are given where somebody else sees to it that operators give them, who sees the operators anyway.
    """
    from transformers import masking_utils
    from transformers import modeling_flash_attention_utils as flash

    with ExitStack() as stack:
        stack.enter_context(building_on_meta())
        stack.enter_context(replaced(masking_utils, "find_packed_sequence_indices", _no_packed_sequences))
        stack.enter_context(replaced(flash, "_is_packed_sequence", lambda position_ids, batch_size: False))
        stack.enter_context(replaced(masking_utils, "fast_all", _no_padding))
        stack.enter_context(_optimizers_on_meta(kernels))
        autocast = stack.enter_context(autocast_on_meta(model, kernels))
        stack.enter_context(_operators_on_meta(kernels, autocast, compute_capability))
        if results is None:
            stack.enter_context(results_on_meta(MetaResults(kernels)))
        yield


# Operators


@contextmanager
def _operators_on_meta(kernels: Backend, autocast: MetaAutocast, compute_capability: str | None) -> Iterator[None]:
    """Let torch's functions cast as autocast says and take the implementation that ``kernels`` have."""
    import torch
    from torch.overrides import TorchFunctionMode

    functional = torch.nn.functional
    implementations: dict[Any, Callable[..., Any]]
    if kernels == "cuda":
        implementations = {
            functional.scaled_dot_product_attention: partial(cuda_attention, compute_capability=compute_capability),
            functional.dropout: _fused_dropout,
            functional.softmax: _softmax,
        }
    else:
        implementations = {functional.scaled_dot_product_attention: cpu_attention}

    plans: dict[Any, tuple[Callable[..., Any], str | None]] = {}

    class OnMeta(TorchFunctionMode):
        """Sees every call of a torch function before autograd does."""

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
        # A mode is off while it handles a call, here of backward; but layers are recomputed inside.
        with mode:
            return run_backward(*args, **kwargs)

    with mode, replaced(engine, "_engine_run_backward", run_backward_seen):
        yield


def _fused_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:  # noqa: A002 - torch's name
    """Dropout as CUDA's one kernel does it: the result and a mask of one byte an element."""
    import torch

    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


def _softmax(input: torch.Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> torch.Tensor:  # noqa: A002 - torch's name
    """Softmax, which on CUDA reads float16 and writes float32 in one kernel."""
    import torch

    if input.dtype == torch.float16 and dtype == torch.float32:
        return torch._softmax(input, dim, True)
    return torch.nn.functional.softmax(input, dim, dtype=dtype)


def _no_packed_sequences(position_ids: torch.Tensor) -> None:
    """Do what transformers does to find several sequences in one row, and find none."""
    import torch

    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    (steps != 1).cumsum(-1)


def _no_padding(mask: torch.Tensor) -> bool:
    """Do what transformers does to find masked tokens, and find none."""
    mask.sum() == mask.numel()  # noqa: B015 - it allocates
    return True


# Optimizers


@contextmanager
def _optimizers_on_meta(kernels: Backend) -> Iterator[None]:
    """Let torch's optimizers take on meta the implementation that they take on the device of ``kernels``.

    Fused ones exist for CUDA and the CPU, foreach ones for CUDA only.
    """
    from torch.optim import optimizer

    torch_optimizer: Any = optimizer
    fused = torch_optimizer._get_fused_kernels_supported_devices()
    foreach = torch_optimizer._get_foreach_kernels_supported_devices()
    if kernels == "cuda":
        foreach = [*foreach, "meta"]
    with ExitStack() as patches:
        patches.enter_context(
            replaced(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused, "meta"])
        )
        patches.enter_context(replaced(torch_optimizer, "_get_foreach_kernels_supported_devices", lambda: foreach))
        patches.enter_context(_paged_states())
        yield


@contextmanager
def stepping_on_meta(optimizer: torch.optim.Optimizer, kernels: Backend, results: MetaResults) -> Iterator[None]:
    """Let steps of ``optimizer`` go as on a device that runs ``kernels``, within `running_on_meta`.

    What a step reads of a tensor, such as the norm of an update, scales other tensors and changes no size: it reads 1.
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
        if kernels == "cuda" and module.__name__ == "optimi.stableadamw":
            for group in optimizer.param_groups:
                group["triton"] = True
            # Its kernels of Triton's allocate nothing.
            patches.enter_context(replaced(module, "stableadamw", lambda **_: None))
        yield


@contextmanager
def _paged_states() -> Iterator[None]:
    """Let bitsandbytes' paged states take no memory of the device.

    They lie in unified memory, which torch takes for the host's: outside the caching allocator on CUDA as well.
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
