"""A dispatch mode that sees every operation of a step, forward and backward, and autograd's sums of gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lorabench.estimator.trace.scratch import Scratch, ScratchTensors

if TYPE_CHECKING:
    import torch

Execute = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Maps an operator and its arguments to its result."""


def watch_operations(
    record: Callable[[Any, Any], None],
    ran: Callable[[Any], None],
    scratch: Scratch,
    execute: Execute,
    accumulate: Callable[[torch.Tensor, torch.Tensor], None],
    put: Callable[[torch.Tensor, torch.Tensor], None],
    *,
    compiles: bool,
) -> Any:
    """Return a context that calls ``record`` with every operation and its result.

    It also calls ``record`` with the scratch memory of the operation, before or after its results, in the order of
    their allocation. Then it calls ``ran`` with the operation. ``execute`` runs the operations. ``accumulate`` is
    called with the first addend and the sum if autograd adds two gradients. ``put`` is called with the zeros and the
    result if the backward of ``x[index]`` writes gradients into zeros (`index_put`). ``compiles``: whether the step
    runs torch.compile.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    in_place = {torch.ops.aten.add.Tensor: accumulate, torch.ops.aten.index_put.default: put}
    no_torch_functions: Any = torch._C.DisableTorchFunction

    class InsideKernel(TorchFunctionMode):
        """Sees the operations inside a kernel written in Python, which a dispatch mode does not see."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            record(func, result)
            ran(func)
            return result

    class Special(NamedTuple):
        """How an operator differs from others: scratch memory, a kernel in Python, a result in place under autograd."""

        holds: Callable[..., ScratchTensors] | None
        in_python: bool
        reverses: bool
        """Whether its kernel allocates its results in reverse order."""
        take_over: Callable[[torch.Tensor, torch.Tensor], None] | None

    def special(operator: Any) -> Special:
        of_bitsandbytes = operator.name() if operator.namespace == "bitsandbytes" else ""
        in_python = "gemm_4bit" in of_bitsandbytes
        # Their maxima, and dropout's mask (`dropout_cuda` of Dropout.cu).
        reverses = "::quantize" in of_bitsandbytes or operator is torch.ops.aten.native_dropout.default
        return Special(scratch.get(operator), in_python, reverses, in_place.get(operator))

    specials: dict[int, Special] = {}
    """By id: operators are never freed, and their hash is slow."""

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Sees every operation, in backward too."""

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # If nothing is compiled, do not spend time on disabling the compiler for each operation.
            return compiles

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            known = specials.get(id(func))
            if known is None:
                known = specials[id(func)] = special(func)
            holds, in_python, reverses, take_over = known
            # Otherwise an active mode for torch functions would see every access to a tensor's attributes.
            with no_torch_functions():
                scratch_tensors = holds(*args, **kwargs) if holds is not None else None
                if scratch_tensors:
                    record(func, scratch_tensors.before)
                if not in_python:
                    result = execute(func, args, kwargs)
                    if take_over is not None and _adds_gradients():
                        take_over(args[0], result)
                    record(func, result[::-1] if reverses else result)
            if in_python:
                with InsideKernel():
                    result = func(*args, **kwargs)
                record(func, result)
            ran(func)
            if scratch_tensors:
                with no_torch_functions():
                    record(func, scratch_tensors.after)
            return result

    return Watch()  # type: ignore[no-untyped-call]


def run(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``operator`` and return its result."""
    return operator(*args, **kwargs)


def _adds_gradients() -> bool:
    """Return whether the running addition is autograd's own sum of two gradients."""
    import torch

    return not torch.is_grad_enabled() and torch._C._current_autograd_node() is not None


def sharers(storage: Any) -> int:
    """Return how many tensors are on ``storage``."""
    import torch

    owners: int = torch._C._storage_Use_Count(storage._cdata)
    return owners - 1  # without the Python object ``storage``


def use_count(tensor: Any) -> int:
    """Return torch's reference count of ``tensor``."""
    count: int = tensor._use_count()
    return count


@cache
def references_of_a_gathered_gradient() -> int:
    """Return torch's reference count, in a dispatch mode, of a gradient that only autograd references."""
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
