"""A ledger of live tensor storages: how many bytes a training step holds, at which moment, for what.

Every operation passes through a dispatch mode, which follows the storages of its results by weak reference, so a
storage counts from the operation that made it until nothing refers to it any more: views and in-place results count
once. It works alike on the CPU, on CUDA and on meta tensors, where nothing is computed. What a kernel allocates and
frees inside one operation is not seen; a trace on meta tells it (`scratch`).

- `watched_operations`: every operation, seen through the dispatch mode;
- `followed_storages`: which storage each tensor is on, and when it dies;
- `storage_history`: births and deaths, the components that they tell, and the peaks;
- `model_tensors`: what a model holds before any operation.
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
    """Counts the storages of one device type (or several) while it is entered.

    Hand it what lives already (`adopt_model`, `adopt_optimizer`, `adopt`), enter it, call `begin_step`, run a
    `TrainingStep` whose ``on_phase`` is `begin_phase`, then `end_step`. `breakdown` tells the last step's.
    """

    def __init__(
        self,
        *device_types: str,
        scratch: Scratch | None = None,
        execute: Execute | None = None,
        on_birth: Callable[[int, torch.Tensor, Any], None] | None = None,
    ) -> None:
        """Count storages on ``device_types``.

        ``scratch`` tells what an operation's kernel holds besides its results; ``execute`` runs operations, where they
        are not simply called. ``on_birth`` is told each new storage's number, a tensor on it, and the operation that
        made it (None where it was adopted).
        """
        super().__init__(device_types, on_birth)
        self._scratch = scratch
        self._execute = execute
        self._open: ExitStack | None = None
        self.on_operation: Callable[[Any], None] | None = None
        """Called with each operation when its results are counted."""

    # What lives before the step.

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
        """Count ``tensors`` under ``component``; what is no tensor or lies on another device is passed over."""
        assert component in COMPONENTS
        for tensor in tensors_in(tensors):
            sid = self._follow(tensor)
            if sid is not None:
                self._components[sid] = component

    # The step.

    def begin_step(self) -> None:
        """Start the step that `breakdown` tells of."""
        self._phases = []

    def begin_phase(self, phase: str) -> None:
        """Note that ``phase`` begins; pass it to `TrainingStep`."""
        assert phase in PHASES
        if phase == "forward":
            self._in_head = False
        self._phases.append((len(self._events), phase))

    def end_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Learn what the step left behind: gradients, optimizer states, parameters that were replaced."""
        import torch

        self._phases.append((len(self._events), ""))
        with torch._C.DisableTorchFunction():  # a mode would see every question to a tensor
            for parameter in model.parameters():
                self.adopt("gradients", parameter.grad)
            self.adopt_optimizer(optimizer)
            for component, tensor in model_tensors(model):
                self.adopt(component, tensor)

    def watch_model(self, model: nn.Module, vocab_size: int) -> None:
        """Tell logits and rotary tables from other tensors of the forward pass of ``model``, a causal language model.

        Logits are what its head makes of the hidden states, (batch, sequence, ``vocab_size``), and all tensors of
        that width until the head's backward ends.
        """
        assert self._open is not None, "enter the ledger first"
        self._vocabulary = vocab_size
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

    def _count(self, operation: Any, result: Any) -> None:
        self._record(operation, result)
        if self.on_operation is not None:
            self.on_operation(operation)

    def __enter__(self) -> StorageLedger:
        # Learnt before the ledger's own mode is on.
        references_of_a_gathered_gradient()
        self._open = ExitStack()
        self._open.enter_context(
            watch_operations(
                self._count,
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
