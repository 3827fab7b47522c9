"""The stage of a rehearsed process: the process writes it to a file, and the command reads and shows it.

Stages: ``loading`` begins with the import of torch, ``preparing`` with the first use of a GPU; ``step 1``, ``step 2``…
begin with the step.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

FILES = "stage.*"
FOLDER = "NULL_GPU_NOTES"


def begin() -> None:
    """Write this process's stages into the folder of notes from now on. The null GPU's startup calls this."""
    Stages(Path(os.environ[FOLDER])).begin()


def last_stage(folder: Path) -> str:
    """Return the latest stage of the processes in ``folder``; ``starting`` if there is none."""
    stages = [(0, "starting")]
    for path in folder.glob(FILES):
        with suppress(OSError):  # the process has ended, and the folder is gone
            stages.append((path.stat().st_mtime_ns, path.read_text(encoding="utf-8")))
    return max(stages)[1]


class Stages:
    """Watches modules and optimizers of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = 0
        self.training = False

    def begin(self) -> None:
        """Register all hooks."""
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
        with suppress(OSError):  # the reader is gone
            (self.folder / f"stage.{os.getpid()}").write_text(stage, encoding="utf-8")
