"""cuBLAS workspaces on meta: each thread's first matmul allocates one, as in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorabench.estimator.memory.workspaces import HANDLES, workspaces

if TYPE_CHECKING:
    import torch

    from lorabench.estimator.trace.storages import StorageLedger


class CublasWorkspaces:
    """Adds to a `StorageLedger` the workspace of each thread that runs matmuls: the program's, and autograd's.

    The moment matters. Backward allocates its workspace after the gradients of the logits, in the block that the
    float32 logits left free. The next step then needs another segment for its float32 logits.
    """

    def __init__(self, ledger: StorageLedger, compute_capability: str | None) -> None:
        """Use the workspace size of ``compute_capability``; see `workspaces` for None."""
        import torch

        aten, functional = torch.ops.aten, torch.nn.functional
        self._matmuls = {
            aten.mm.default,
            aten.bmm.default,
            aten.addmm.default,
            aten.baddbmm.default,
            functional.linear,  # inside kernels written in Python
        }
        try:
            import bitsandbytes  # noqa: F401 - it defines the operator
        except ImportError:
            pass
        else:
            self._matmuls.add(torch.ops.bitsandbytes.gemm_4bit.default)  # of the dequantised weight
        self._ledger = ledger
        self._bytes_each = workspaces(compute_capability).bytes // HANDLES
        self._backward = False
        self._taken: dict[bool, torch.Tensor] = {}

    def begin_phase(self, phase: str) -> None:
        """Begin ``phase`` of the ledger. Backward, with its recomputation, runs in a thread of its own."""
        self._ledger.begin_phase(phase)
        self._backward = phase == "backward"

    def take(self, operation: Any) -> None:
        """Allocate the thread's workspace if ``operation`` was the thread's first matmul. Call it after the result."""
        if self._backward in self._taken or operation not in self._matmuls:
            return
        import torch

        workspace = self._taken[self._backward] = torch.empty(self._bytes_each, dtype=torch.uint8, device="meta")
        self._ledger.adopt("workspaces", workspace)
