"""Hooks around each module's forward pass. Compiling a model removes them: they would break up its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_handles: list[Any] = []


def watch_modules(enter: Callable[..., None], leave: Callable[..., None] | None = None) -> None:
    """Call ``enter`` before each module's forward pass, and ``leave`` after it, until a module is compiled."""
    from torch.nn.modules import module

    if not _handles:
        _forgo_compiled_modules()
    _handles.append(module.register_module_forward_pre_hook(enter))
    if leave is not None:
        _handles.append(module.register_module_forward_hook(leave, always_call=True))


def _forgo_compiled_modules() -> None:
    import torch

    compile_ = torch.compile

    def compile_unwatched(model: Any = None, **options: Any) -> Any:
        if isinstance(getattr(model, "__self__", model), torch.nn.Module):
            for handle in _handles:
                handle.remove()
        return compile_(model, **options)

    torch.compile = compile_unwatched
