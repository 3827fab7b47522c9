"""How far a rehearsed process is: it says so in a file, which the command reads to show it.

Stages: ``loading`` from the import of torch on, ``preparing`` from the first use of a GPU on, then ``step 1``, ``step
2``… from each step's beginning on.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

FILES = "stage.*"
FOLDER = "NULL_GPU_NOTES"


def begin() -> None:
    """Say the stages of this process from now on, in the folder of notes. The null GPU's startup calls it."""
    Stages(Path(os.environ[FOLDER])).begin()


def last_stage(folder: Path) -> str:
    """Return what the processes in ``folder`` said last; ``starting`` if none has said anything."""
    stages = [(0, "starting")]
    for path in folder.glob(FILES):
        with suppress(OSError):  # the process ended, and the folder with it
            stages.append((path.stat().st_mtime_ns, path.read_text(encoding="utf-8")))
    return max(stages)[1]


class Stages:
    """Watches modules and optimizers of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = 0
        self.training = False

    def begin(self) -> None:
        """Register what watches."""
        import torch
        from torch.optim import optimizer

        from lorabench.bench.rehearsing.module_hooks import watch_modules

        self._say("loading")
        cuda: Any = torch.cuda
        cuda._lazy_call(lambda: self._say("preparing"))
        watch_modules(self._enter_module)
        optimizer.register_optimizer_step_post_hook(self._after_step)

    def _enter_module(self, module: Any, arguments: Any) -> None:
        import torch

        if not self.training and torch.is_grad_enabled() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self.training = True
            self._say("step 1")

    def _after_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        self.steps += 1
        self._say(f"step {self.steps + 1}")

    def _say(self, stage: str) -> None:
        with suppress(OSError):  # nobody reads it any more
            (self.folder / f"stage.{os.getpid()}").write_text(stage, encoding="utf-8")
