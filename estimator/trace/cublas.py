"""cuBLAS workspaces on meta: allocated at the first matrix product of each thread, as torch does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorabench.estimator.memory.workspaces import HANDLES, workspaces

if TYPE_CHECKING:
    import torch

    from lorabench.estimator.trace.storages import StorageLedger


class CublasWorkspaces:
    """Gives `StorageLedger` the workspace of each thread that multiplies matrices: the program's, and autograd's.

    When it is taken matters: in backward that is after the gradients of the logits were made, so that the workspace
    sits in what the float32 logits left free, and the next step needs another segment for those.
    """

    def __init__(self, ledger: StorageLedger, compute_capability: str | None) -> None:
        """Take workspaces as large as those of ``compute_capability``; see `workspaces` for what None stands for."""
        import torch

        aten, functional = torch.ops.aten, torch.nn.functional
        self._matmuls = {
            aten.mm.default,
            aten.bmm.default,
            aten.addmm.default,
            aten.baddbmm.default,
            functional.linear,  # in kernels that are written in Python
        }
        self._ledger = ledger
        self._bytes_each = workspaces(compute_capability).bytes // HANDLES
        self._backward = False
        self._taken: dict[bool, torch.Tensor] = {}

    def begin_phase(self, phase: str) -> None:
        """Begin ``phase`` of the ledger, whose backward, with its recomputation, runs in a thread of its own."""
        self._ledger.begin_phase(phase)
        self._backward = phase == "backward"

    def take(self, operation: Any) -> None:
        """Allocate the thread's workspace if ``operation``, which has made its result, is its first matmul."""
        if self._backward in self._taken or operation not in self._matmuls:
            return
        import torch

        workspace = self._taken[self._backward] = torch.empty(self._bytes_each, dtype=torch.uint8, device="meta")
        self._ledger.adopt("workspaces", workspace)
