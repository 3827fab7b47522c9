"""torch.autocast for meta tensors, which torch does not support.

Autocast has a list of operators for each device type: `include/ATen/autocast_mode.h` of torch 2.13 for CUDA,
`autocast_mode.cpp` for the CPU. It casts as torch does (`cached_cast`): casts of trainable float32 leaves are cached
until the outermost context ends. So the casts of a checkpointed layer's recomputation are freed when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.training.patches import replaced

if TYPE_CHECKING:
    import torch
    from torch import nn

# fmt: off
MATMULS = frozenset({
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addr", "addbmm", "baddbmm",
    "einsum", "chain_matmul", "multi_dot", "vecdot", "prelu", "scaled_dot_product_attention", "conv1d", "conv2d",
    "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
})
"""Operators that autocast runs in its lower precision, on CUDA and on the CPU."""
IN_FLOAT32: dict[Backend, frozenset[str]] = {
    "cuda": frozenset({
        "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
        "sinh", "tan", "pow", "__pow__", "__rpow__", "square", "softplus", "layer_norm", "native_layer_norm",
        "rms_norm", "group_norm", "cosine_similarity", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss",
        "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "dist", "cdist", "renorm", "logsumexp",
    }),
    "cpu": frozenset({
        "nll_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy",
        "binary_cross_entropy_with_logits", "prod", "cdist", "trace",
    }),
}
"""Operators whose inputs autocast casts to float32. torch's square calls pow, which is on its list."""
INTO_FLOAT32: dict[Backend, frozenset[str]] = {
    "cuda": frozenset({
        "prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum", "norm", "vector_norm", "matrix_norm",
    }),
    "cpu": frozenset(),
}
"""Operators that get ``dtype=torch.float32`` from autocast if the caller passes no dtype."""
# fmt: on


class MetaAutocast:
    """Autocast's state for meta tensors: nested contexts, and the cache of casts."""

    def __init__(self, backend: Backend) -> None:
        import torch

        self.backend = backend
        self.enabled = False
        self.dtype: torch.dtype = torch.bfloat16
        self._nesting = 0
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def context(self, dtype: torch.dtype, *, enabled: bool) -> Iterator[None]:
        """Enable or disable casts to ``dtype``. Leaving the outermost context clears the cache."""
        before = self.enabled, self.dtype
        self.enabled, self.dtype = enabled, dtype
        self._nesting += 1
        try:
            yield
        finally:
            self._nesting -= 1
            self.enabled, self.dtype = before
            if self._nesting == 0:
                self._cache.clear()

    def casts(self, name: str) -> bool:
        """Return whether autocast has a rule for operator ``name``."""
        return name in MATMULS or name in IN_FLOAT32[self.backend] or name in INTO_FLOAT32[self.backend]

    def cast(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of operator ``name`` as an enabled autocast casts them."""
        import torch

        if name in MATMULS:
            return self._all(args, kwargs, self.dtype)
        if name in IN_FLOAT32[self.backend]:
            return self._all(args, kwargs, torch.float32)
        if name in INTO_FLOAT32[self.backend]:
            asked = kwargs.get("dtype") is not None or any(isinstance(value, torch.dtype) for value in args)
            tensor = args[0] if args else kwargs.get("input")
            if not asked and isinstance(tensor, torch.Tensor) and _eligible(tensor):
                return args, {**kwargs, "dtype": torch.float32}
        return args, kwargs

    def _all(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Cast all arguments, the last one first, as torch compiled with GCC does. Backward runs in reverse order."""
        cast_kwargs = {key: self._to(kwargs[key], dtype) for key in reversed(kwargs)}
        cast_args = [self._to(value, dtype) for value in reversed(args)]
        return tuple(reversed(cast_args)), cast_kwargs

    def _to(self, value: Any, dtype: torch.dtype) -> Any:
        import torch

        if isinstance(value, list | tuple):
            return type(value)(self._to(item, dtype) for item in value)
        if not isinstance(value, torch.Tensor) or not _eligible(value) or value.dtype == dtype:
            return value
        keeps = value.dtype == torch.float32 and dtype != torch.float32 and value.is_leaf and value.requires_grad
        if not keeps or value._is_view():
            return value.to(dtype)
        if id(value) not in self._cache:
            self._cache[id(value)] = (value, value.to(dtype))
        return self._cache[id(value)][1]


def _eligible(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.is_floating_point() and tensor.dtype != torch.float64


@contextmanager
def autocast_on_meta(model: nn.Module, backend: Backend) -> Iterator[MetaAutocast]:
    """Make ``torch.autocast("meta")`` behave as autocast on a device of ``backend``.

    torch's queries, such as ``torch.is_autocast_enabled``, answer for meta too: torch.utils.checkpoint, transformers
    and peft call them. `cuda_semantics.running_on_meta` applies the casts to the operators.
    """
    import torch

    state = MetaAutocast(backend)
    real_autocast, real_enabled = torch.autocast, torch.is_autocast_enabled
    real_available, real_dtype = torch.amp.is_autocast_available, torch.get_autocast_dtype

    def autocast(
        device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> Any:
        if device_type == "meta":
            return state.context(state.dtype if dtype is None else dtype, enabled=enabled)
        return real_autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)

    def is_autocast_enabled(device_type: str | None = None) -> bool:
        if device_type == "meta":
            return state.enabled
        if device_type is None:  # None means CUDA
            return state.enabled and backend == "cuda"
        return real_enabled(device_type)

    def is_autocast_available(device_type: str) -> bool:
        return device_type == "meta" or real_available(device_type)

    def get_autocast_dtype(device_type: str) -> torch.dtype:
        return state.dtype if device_type == "meta" else real_dtype(device_type)

    def maybe_autocast(device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> Any:
        """Replace transformers' function of that name, which does nothing on meta."""
        return torch.autocast(device_type, dtype, enabled, cache_enabled)

    with ExitStack() as patches:
        for owner in (torch, torch.amp):
            patches.enter_context(replaced(owner, "autocast", autocast))
        patches.enter_context(replaced(torch.amp, "is_autocast_available", is_autocast_available))
        patches.enter_context(replaced(torch, "is_autocast_enabled", is_autocast_enabled))
        patches.enter_context(replaced(torch, "get_autocast_dtype", get_autocast_dtype))
        for module in _modules_that_call("maybe_autocast", model):
            patches.enter_context(replaced(module, "maybe_autocast", maybe_autocast))
        yield state


def _modules_that_call(name: str, model: nn.Module) -> list[Any]:
    """Return the Python modules that define the model's classes and have a global ``name``."""
    import sys

    modules = {type(part).__module__ for part in model.modules()}
    return [sys.modules[module] for module in sorted(modules) if hasattr(sys.modules[module], name)]
