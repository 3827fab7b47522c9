"""Every operation of a step, forward and backward, seen through a dispatch mode; and how autograd adds gradients up."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lorabench.estimator.trace.scratch import Scratch

if TYPE_CHECKING:
    import torch

Execute = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""From an operator and its arguments to its result."""


def watch_operations(
    record: Callable[[Any, Any], None],
    scratch: Scratch,
    execute: Execute,
    accumulate: Callable[[torch.Tensor, torch.Tensor], None],
    put: Callable[[torch.Tensor, torch.Tensor], None],
    *,
    compiles: bool,
) -> Any:
    """Return a context in which ``record`` gets every operation and its result, after what ``scratch`` says of it.

    ``execute`` runs the operations. ``accumulate`` gets the first addend and the sum wherever gradients are added up;
    ``put`` gets the zeros and what became of them wherever the gradient of indexed rows is put back in their places.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    in_place = {torch.ops.aten.add.Tensor: accumulate, torch.ops.aten.index_put.default: put}
    no_torch_functions: Any = torch._C.DisableTorchFunction

    class InsideKernel(TorchFunctionMode):
        """Sees the operations of a kernel that is written in Python, where no dispatch mode reaches."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            record(func, result)
            return result

    class Special(NamedTuple):
        """What is special about an operator."""

        holds: Callable[..., list[torch.Tensor]] | None
        in_python: bool
        take_over: Callable[[torch.Tensor, torch.Tensor], None] | None

    def special(operator: Any) -> Special:
        in_python = operator.namespace == "bitsandbytes" and "gemm_4bit" in operator.name()
        return Special(scratch.get(operator), in_python, in_place.get(operator))

    specials: dict[int, Special] = {}
    """By identity: operators live as long as torch does, and hash slowly."""

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Sees every operation, also those of the backward pass."""

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # Where nothing is compiled, to switch the compiler off at every operation only takes time.
            return compiles

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            known = specials.get(id(func))
            if known is None:
                known = specials[id(func)] = special(func)
            holds, in_python, take_over = known
            # A mode for torch functions that is on here would see every question to a tensor.
            with no_torch_functions():
                held = holds(*args, **kwargs) if holds is not None else None
                if held:
                    record(func, held)
                if not in_python:
                    result = execute(func, args, kwargs)
                    if take_over is not None and _adds_gradients():
                        take_over(args[0], result)
                    record(func, result)
                    return result
            with InsideKernel():
                result = func(*args, **kwargs)
            record(func, result)
            return result

    return Watch()  # type: ignore[no-untyped-call]


def run(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation as it is."""
    return operator(*args, **kwargs)


def _adds_gradients() -> bool:
    """Tell whether an addition that runs now is autograd's own, of gradients that meet."""
    import torch

    return not torch.is_grad_enabled() and torch._C._current_autograd_node() is not None


def sharers(storage: Any) -> int:
    """Return how many tensors are on ``storage``."""
    import torch

    owners: int = torch._C._storage_Use_Count(storage._cdata)
    return owners - 1  # but for the Python object that ``storage`` is


def use_count(tensor: Any) -> int:
    """Return how many references torch counts to ``tensor``."""
    count: int = tensor._use_count()
    return count


@cache
def references_of_a_gathered_gradient() -> int:
    """Return how many references a gradient has, seen from a dispatch mode, that only autograd holds."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[int] = []

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Counts the references of the first addend."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.add.Tensor and _adds_gradients():
                seen.append(use_count(args[0]))
            return func(*args, **(kwargs or {}))

    root = torch.ones(1, requires_grad=True) * 1
    with Count():  # type: ignore[no-untyped-call]
        (root * 2 + root * 3).backward()  # type: ignore[no-untyped-call]
    return seen[0]
