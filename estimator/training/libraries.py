"""Importing the libraries that a trace runs, and none of what they bring for what it does not do.

Nothing is compiled in a trace, nothing runs on several devices, and no number is computed: the compiler, distributed
tensors and scipy would take two seconds to import, and do nothing.
"""

from __future__ import annotations

import functools
import gc
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

_unlimited = functools.lru_cache(maxsize=None)


def import_libraries() -> None:
    """Import torch, bitsandbytes, transformers and peft, without a word.

    Raises:
        ImportError: one of them is not installed.
    """
    from lorabench.estimator.quiet import quiet_libraries

    leave_out_hub_kernels()
    with quiet_libraries():
        _import_libraries()


def leave_out_hub_kernels() -> None:
    """Let nothing in this process import the package kernels, if it is installed.

    On a CPU with AVX512-BF16, bitsandbytes imports it to fetch compiled code from the hub and run that: code that
    nobody asked for, and a minute of waiting without a network.
    """
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]


def _import_libraries() -> None:
    from lorabench.estimator.training.patches import replaced

    # What is imported stays, and so does the model: to look through them for garbage again and again takes a second.
    gc.disable()
    gc.set_threshold(100_000)
    try:
        import torch

        if "torch._dynamo" not in sys.modules:
            _put_off_the_compiler()
        import bitsandbytes  # noqa: F401

        # transformers looks through its folders for names twice, and its cache of 128 folders holds none by then.
        with replaced(functools, "lru_cache", _unlimited_cache):
            import transformers.utils
        with (
            replaced(torch.distributed, "is_available", lambda: False),
            # scipy serves the losses of object detection, which transformers imports with all others.
            replaced(transformers.utils, "is_scipy_available", lambda: False),
        ):
            import peft  # noqa: F401
            import transformers.loss.loss_utils
    finally:
        gc.freeze()
        gc.enable()


def _put_off_the_compiler() -> None:
    """Let no function be compiled, and ``torch._dynamo`` be imported whole only when more of it is asked for."""
    import torch

    patched: Any = torch
    spec = importlib.util.find_spec("torch._dynamo")
    assert spec is not None
    assert spec.loader is not None
    package: Any = importlib.util.module_from_spec(spec)
    load = spec.loader.exec_module

    def load_the_rest(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        del package.__getattr__
        load(package)
        return getattr(package, name)

    class WholeBeforeInductor(importlib.abc.MetaPathFinder):
        """Loads the rest before ``torch._inductor``: the two import each other, and only in this order."""

        def find_spec(self, name: str, path: Any, target: Any = None) -> None:
            if name == "torch._inductor":
                sys.meta_path.remove(self)
                if "__getattr__" in vars(package):
                    load_the_rest("symbolic_convert")

    package.__getattr__ = load_the_rest
    sys.meta_path.insert(0, WholeBeforeInductor())
    package.disable = package.allow_in_graph = package.assume_constant_result = _uncompiled
    package.graph_break = lambda *_, **__: None
    sys.modules[spec.name] = patched._dynamo = package
    patched.compile = _uncompiled  # also of bitsandbytes' CPU kernels
    importlib.import_module("torch._dynamo.config")


def _uncompiled(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Return ``function``, or what does when it is used as a decorator with arguments."""
    return function or _uncompiled


def _unlimited_cache(function: Any = None, **_: Any) -> Any:
    """Cache as `functools.lru_cache` does, but without a limit."""
    return _unlimited(function) if callable(function) else _unlimited
