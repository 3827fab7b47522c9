"""A distributed training with a single rank that runs, and does not wait for the others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

NCCL_ID = bytes(128)
"""The value that rank 0 would send to the others before their first collective."""


def go_alone() -> None:
    """Replace torch's rendezvous store by one that never waits, if the other ranks are absent."""
    if "NULL_GPU_ABSENT_RANKS" not in os.environ:
        return
    import torch.distributed as dist

    if not dist.is_available():
        return

    class AloneStore(dist.Store):  # type: ignore[name-defined, misc]
        """Keeps the values that this rank sets, and does not wait for other ranks."""

        def __init__(self) -> None:
            super().__init__()
            self.values: dict[str, bytes] = {}

        def set(self, key: str, value: Any) -> None:
            self.values[key] = value.encode() if isinstance(value, str) else bytes(value)

        def get(self, key: str) -> bytes:
            return self.values.get(key, NCCL_ID)

        def add(self, key: str, amount: int) -> int:
            total = int(self.values.get(key, b"0")) + amount
            self.values[key] = str(total).encode()
            return total

        def compare_set(self, key: str, expected: str, desired: str) -> bytes:
            if self.values.get(key, b"").decode() == expected:
                self.values[key] = desired.encode()
            return self.values.get(key, expected.encode())

        def delete_key(self, key: str) -> bool:
            return self.values.pop(key, None) is not None

        def check(self, keys: list[str]) -> bool:
            return all(key in self.values for key in keys)

        def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
            pass

        def num_keys(self) -> int:
            return len(self.values)

        def set_timeout(self, timeout: timedelta) -> None:
            pass

    patched: Any = import_module("torch.distributed.rendezvous")  # torch.distributed has a function of that name
    store = AloneStore()  # one for all groups, which torch separates by prefixes, and for as long as the process
    patched._create_c10d_store = lambda *_, **__: store
    # Groups are created, never split off others: for a split, NCCL would ask the absent ranks for their colour.
    patched = import_module("torch.distributed.distributed_c10d")
    patched._get_split_source = lambda group: None
    if dist.is_gloo_available():
        patched.ProcessGroupGloo = _without_gloo(patched.ProcessGroupGloo)
    patched = import_module("torch.distributed.launcher.api")
    patched.launch_agent = launch_one_rank


def _without_gloo(gloo: Any) -> Any:
    class NoGloo(gloo):  # type: ignore[misc]
        """Refuses Gloo's groups, whose ranks connect to each other at creation."""

        def __init__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError(
                "null GPU: a Gloo group cannot be made while the other ranks do not run: make only NCCL groups, as "
                "init_process_group('nccl') does, or rehearse all ranks"
            )

    return NoGloo


def launch_one_rank(
    config: Any, entrypoint: Callable[..., Any] | str | None, args: list[Any], **_: Any
) -> dict[int, Any]:
    """Start only one of the ranks that torchrun or ``accelerate launch`` would start on all nodes.

    Args:
        config: torch's ``LaunchConfig``.
        entrypoint: a program, or a function to call.
        args: its arguments.

    Returns:
        The rank, and what the function returned.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local, nodes = config.nproc_per_node, config.max_nodes
    if local * nodes != ranks:
        raise SystemExit(
            f"lorabench: the command starts {local * nodes} ranks, {local} on each of {nodes} nodes, and the rehearsal "
            f"is of one rank of {ranks}: give --ranks {local * nodes}"
        )
    os.environ |= {
        "LOCAL_RANK": str(rank % local),
        "LOCAL_WORLD_SIZE": str(local),
        "GROUP_RANK": str(rank // local),
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": config.run_id or "none",
    }
    if callable(entrypoint):
        return {rank: entrypoint(*args)}
    done = subprocess.run([str(entrypoint), *map(str, args)], check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return {rank: None}
