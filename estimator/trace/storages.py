"""A ledger of live tensor storages: the bytes that a training step holds, when, and for what.

A dispatch mode sees every operation and follows the storages of its results by weak reference. So a storage counts from
the operation that made it until nothing refers to it; views and in-place results count once. It works on the CPU, on
CUDA and on meta tensors, which compute nothing. It does not see memory that a kernel allocates and frees inside one
operation; a trace on meta adds that memory (`scratch`).

- `watched_operations`: the dispatch mode that sees every operation;
- `followed_storages`: the storage of each tensor, and its death;
- `storage_history`: births and deaths, the components that follow from them, and the peaks;
- `model_tensors`: the tensors of a model before any operation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lorabench.estimator.memory.breakdown import COMPONENTS, PHASES
from lorabench.estimator.trace.followed_storages import FollowedStorages
from lorabench.estimator.trace.model_tensors import model_tensors, tensors_in
from lorabench.estimator.trace.scratch import Scratch
from lorabench.estimator.trace.watched_operations import (
    Execute,
    references_of_a_gathered_gradient,
    run,
    watch_operations,
)

if TYPE_CHECKING:
    import torch
    from torch import nn


class StorageLedger(FollowedStorages):
    """Counts the storages of one or several device types while it is entered.

    Usage: register existing tensors (`adopt_model`, `adopt_optimizer`, `adopt`), enter it, call `begin_step`, run a
    `TrainingStep` whose ``on_phase`` is `begin_phase`, then call `end_step`. `breakdown` is that of the last step.
    """

    def __init__(
        self,
        *device_types: str,
        scratch: Scratch | None = None,
        execute: Execute | None = None,
        on_birth: Callable[[int, torch.Tensor, Any], None] | None = None,
    ) -> None:
        """Count storages on ``device_types``.

        ``scratch`` lists the scratch memory of operations' kernels. ``execute`` runs the operations; by default they
        are called. ``on_birth`` is called with each new storage's number, a tensor on it, and the operation that made
        it (None for an adopted tensor).
        """
        super().__init__(device_types, on_birth)
        self._scratch = scratch
        self._execute = execute
        self._open: ExitStack | None = None
        self.on_operation: Callable[[Any], None] | None = None
        """Called with each operation when its results are counted, but not yet its scratch memory after them."""

    # Tensors that exist before the step.

    def adopt_model(self, model: nn.Module) -> None:
        """Count the model's parameters, quantisation constants and buffers.

        Weights that train beside frozen ones are adapters.
        """
        for component, tensor in model_tensors(model):
            self.adopt(component, tensor)
        self.adapted_bytes = self._live_bytes()

    def adopt_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the optimizer's states."""
        for state in optimizer.state.values():
            for value in state.values():
                self.adopt("optimizer_states", value)

    def adopt(self, component: str, *tensors: Any) -> None:
        """Count ``tensors`` under ``component``. Other objects, and tensors on other devices, are ignored."""
        assert component in COMPONENTS
        for tensor in tensors_in(tensors):
            sid = self._follow(tensor)
            if sid is not None:
                self._components[sid] = component

    # The step.

    def begin_step(self) -> None:
        """Start a step. `breakdown` is that of the last one."""
        self.step_start = len(self._events)
        self.phases = []

    def begin_phase(self, phase: str) -> None:
        """Note that ``phase`` begins; pass it to `TrainingStep`."""
        assert phase in PHASES
        if phase == "forward":
            self._in_head = False
        self.phases.append((len(self._events), phase))

    def end_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Record the tensors that the step left: gradients, optimizer states, replaced parameters."""
        import torch

        self.phases.append((len(self._events), ""))
        with torch._C.DisableTorchFunction():  # a mode would intercept every access to a tensor's attributes
            for parameter in model.parameters():
                self.adopt("gradients", parameter.grad)
            self.adopt_optimizer(optimizer)
            for component, tensor in model_tensors(model):
                self.adopt(component, tensor)

    def watch_model(self, model: nn.Module, width: int) -> None:
        """Recognise logits and rotary tables among the tensors of ``model``, a causal language model.

        Logits are the output of its head, (batch, sequence, vocabulary), and all tensors of that ``width`` until the
        head's backward ends.
        """
        assert self._open is not None, "enter the ledger first"
        self._width = width
        head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]

        def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._in_head = True
            hidden = arguments[0]
            if hidden.requires_grad:
                hidden.register_hook(leave)

        def leave(gradient: torch.Tensor) -> None:
            self._in_head = False

        def keep_tables(module: nn.Module, arguments: tuple[Any, ...], tables: Any) -> None:
            self.adopt("buffers", tables)

        self._open.callback(head.register_forward_pre_hook(enter).remove)
        for module in model.modules():
            if type(module).__name__.endswith("RotaryEmbedding"):
                self._open.callback(module.register_forward_hook(keep_tables).remove)

    def _ran(self, operation: Any) -> None:
        if self.on_operation is not None:
            self.on_operation(operation)

    def __enter__(self) -> StorageLedger:
        # Measured once, before the ledger's own mode is active.
        references_of_a_gathered_gradient()
        self._open = ExitStack()
        self._open.enter_context(
            watch_operations(
                self._record,
                self._ran,
                self._scratch or {},
                self._execute or run,
                self._accumulate,
                self._put,
                compiles=self._execute is None,
            )
        )
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._open is not None
        self._open.close()
        self._open = None
