"""The origin of each storage: the operator that made it, and the module that called it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn


class Origin(NamedTuple):
    """The first tensor on a storage, and its maker."""

    operator: str
    """The operator that made it, such as ``aten.mm``; empty for storages from before the first step."""
    module: str
    """Path of the module whose forward or backward made it; for a parameter its own path."""
    shape: tuple[int, ...]
    dtype: str


class Origins:
    """Records the origin of every storage of one model's steps. Pass `note` to a `StorageLedger`.

    In forward, hooks tell which module runs. In backward, each node of autograd's graph has the sequence number that
    forward gave it, and belongs to the module that ran at that number.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._tensor_names: dict[int, str] = {}
        """Number of a storage from before the first step → name of the parameter or buffer on it."""
        self._before_steps = 0
        self._latest: dict[int, int] = {}
        """id of a storage → its number. If several storages had the id, the last one's."""
        self._stack: list[str] = [""]
        self._numbers: list[int] = []
        self._modules_by_number: list[str] = []
        self._noted: list[tuple[Any, str, torch.Size, torch.dtype]] = []

    def note(self, number: int, tensor: torch.Tensor, operator: Any) -> None:
        """Record the origin of storage ``number``, counted from 0. ``operator``: its maker; None before the steps."""
        assert number == len(self._noted)
        self._latest[id(tensor.untyped_storage())] = number
        module = self._running() if operator is not None and self._names else ""
        self._noted.append((operator, module, tensor.shape, tensor.dtype))

    def begin_steps(self, model: nn.Module) -> None:
        """Attribute all storages so far to ``model``, which is ready for its first step."""
        self._before_steps = len(self._noted)
        self._names = {id(module): name for name, module in model.named_modules()}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            number = self._latest.get(id(tensor.untyped_storage()))
            if number is not None:
                self._tensor_names[number] = name

    def __getitem__(self, number: int) -> Origin:
        operator, module, shape, dtype = self._noted[number]
        if number < self._before_steps:
            operator, module = None, self._tensor_names.get(number, "")
        name = "" if operator is None else str(operator).removesuffix(".default")
        return Origin(name, module, tuple(shape), str(dtype).removeprefix("torch."))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Return a context that records which module runs."""
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        self._stack.append(self._names.get(id(module), self._stack[-1]))
        self._mark()

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._stack.pop()
        self._mark()

    def _mark(self) -> None:
        import torch

        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._modules_by_number.append(self._stack[-1])

    def _running(self) -> str:
        import torch

        if len(self._stack) > 1:
            return self._stack[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        index = bisect_right(self._numbers, node._sequence_nr()) - 1
        return self._modules_by_number[index] if index >= 0 else ""
