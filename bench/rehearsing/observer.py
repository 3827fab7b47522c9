"""Runs inside each Python process of a rehearsed program: counts optimizer steps, and reports peak memory.

The null GPU's startup calls `begin` when the program has imported torch (``NULL_GPU_BEGIN``).
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabench.bench.rehearsing.peak import Owner, Owners
    from lorabench.bench.rehearsing.result import OutOfMemory

STEPS = "LORABENCH_REHEARSED_STEPS"
"""Variable with the number of optimizer steps after which the program is stopped; 0 lets it run to its end."""
SNAPSHOT = "LORABENCH_REHEARSED_SNAPSHOT"
"""Variable that is set if each process also writes its allocator's snapshot, as ``snapshot.PID.json.gz``."""
MOST_EVENTS = 2_000_000


def begin() -> None:
    """Observe this process from now on."""
    from lorabench.bench.rehearsing import random_weights, stages

    stages.begin()
    if random_weights.VARIABLE in os.environ:
        random_weights.begin()
    observer = Observer(int(os.environ.get(STEPS, "0")), Path(os.environ[stages.FOLDER]))
    observer.begin()


class Observer:
    """Watches modules, optimizers and the allocator of this process."""

    def __init__(self, wanted_steps: int, folder: Path) -> None:
        self.wanted_steps = wanted_steps
        self.folder = folder
        self.pid = os.getpid()
        self.steps: dict[int, int] = {}
        """Id of an optimizer → its number of steps so far."""
        self.step_ends: list[int] = []
        """Time at which each step ended, in microseconds of the allocator's history."""
        self.peaks: dict[int, list[int]] = {}
        """GPU index → peak allocated, reserved and requested bytes so far."""
        self.owners: Owners = {}
        self.out_of_memory: OutOfMemory | None = None
        self.stopped = False
        self.trainer: Any = None
        self._names: dict[int, str] = {}
        """Id of a module → its path."""
        self._roots: list[weakref.ref[Any]] = []
        """Outermost modules whose forward pass ran."""
        self._running: list[str] = []

    def begin(self) -> None:
        """Register all hooks."""
        import torch
        from torch.optim import optimizer

        from lorabench.bench.rehearsing.module_hooks import watch_modules

        cuda: Any = torch.cuda
        cuda._lazy_call(self._record_history)  # at once, or when CUDA starts
        watch_modules(self._enter_module, self._leave_module)
        optimizer.register_optimizer_step_pre_hook(self._before_step)
        optimizer.register_optimizer_step_post_hook(self._after_step)
        atexit.register(self.report)
        reset = torch.cuda.memory.reset_peak_memory_stats

        def note_and_reset(device: Any = None) -> None:
            self._note_peaks()
            reset(device)

        torch.cuda.reset_peak_memory_stats = torch.cuda.memory.reset_peak_memory_stats = note_and_reset

    def _record_history(self) -> None:
        import torch

        record: Any = torch.cuda.memory._record_memory_history
        record("all", context="alloc", stacks="python", max_entries=MOST_EVENTS)
        internals: Any = torch._C
        internals._cuda_attach_out_of_memory_observer(self._note_out_of_memory)

    # Modules

    def _enter_module(self, module: Any, arguments: Any) -> None:
        if not self._running and id(module) not in self._names:
            self._roots.append(weakref.ref(module))
            for name, part in module.named_modules():
                self._names[id(part)] = name or type(module).__name__
        self._running.append(self._names.get(id(module), type(module).__name__))
        self._say_module()

    def _leave_module(self, module: Any, arguments: Any, output: Any) -> None:
        if self._running:
            self._running.pop()
        self._say_module()

    def _say_module(self) -> None:
        import torch

        if _started() and hasattr(torch._C, "_cuda_setMemoryMetadata"):  # torch 2.10 or newer
            torch._C._cuda_setMemoryMetadata(self._running[-1] if self._running else "")

    # Optimizers

    def _before_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        from lorabench.bench.rehearsing.peak import Owner

        names = self._parameter_names()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names.get(id(parameter), "")
                self._own(parameter, Owner("weights", name))
                if parameter.grad is not None:
                    self._own(parameter.grad, Owner("gradients", name))

    def _after_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        from lorabench.bench.rehearsing.peak import Owner

        names = self._parameter_names()
        for parameter, state in optimizer.state.items():
            for value in state.values() if isinstance(state, dict) else ():
                self._own(value, Owner("optimizer states", names.get(id(parameter), "")))
        self._own_frozen()
        self.steps[id(optimizer)] = self.steps.get(id(optimizer), 0) + 1
        self.step_ends.append(time.time_ns() // 1000)
        self.report(final=False)
        done = max(self.steps.values())
        if self.trainer is None:
            self.trainer = _running_trainer()
            if self.trainer is not None:
                self.trainer.add_callback(_stopper(self))
        if self.wanted_steps and done >= self.wanted_steps and self.trainer is None:
            self._stop()

    def _own(self, tensor: Any, owner: Owner) -> None:
        import torch

        if not isinstance(tensor, torch.Tensor):
            return
        if hasattr(tensor, "__tensor_flatten__"):  # a rank's shard (DTensor), or a pair of codes and scales
            for part in tensor.__tensor_flatten__()[0]:
                self._own(getattr(tensor, part), owner)
        elif tensor.is_cuda:
            found = self.owners.setdefault(tensor.untyped_storage().data_ptr(), [])
            if not found or found[-1][1] != owner:
                found.append((time.time_ns() // 1000, owner))

    def _parameter_names(self) -> dict[int, str]:
        return {id(parameter): name for root in self._models() for name, parameter in root.named_parameters()}

    def _models(self) -> Iterator[Any]:
        for reference in self._roots:
            root = reference()
            if root is not None:
                yield root

    def _own_frozen(self) -> None:
        """Note the owners of frozen weights, buffers and constants of 4-bit weights, once."""
        from lorabench.bench.rehearsing.peak import Owner

        if self.steps:
            return
        for root in self._models():
            for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
                self._own(tensor, Owner("weights", name))
                for constant in _constants(getattr(tensor, "quant_state", None)):
                    self._own(constant, Owner("weights", name))

    def _note_peaks(self) -> None:
        """Remember the allocator's peaks, since the program may reset them."""
        import torch

        for index in self._devices():
            counters = torch.cuda.memory_stats(index)
            now = [counters[f"{what}_bytes.all.peak"] for what in ("allocated", "reserved", "requested")]
            self.peaks[index] = [max(pair) for pair in zip(self.peaks.get(index, now), now, strict=True)]

    def _devices(self) -> list[int]:
        import torch

        if not _started():
            return []
        return [index for index in range(torch.cuda.device_count()) if torch.cuda.memory_stats(index)]

    def _stop(self) -> None:
        self.stopped = True
        self.report()
        atexit.unregister(self.report)  # it would read the whole history once more
        raise SystemExit(0)

    # Reports

    def _note_out_of_memory(self, device: int, requested: int, device_total: int, device_free: int) -> None:
        import torch

        from lorabench.bench.rehearsing.peak import FRAMES_KEPT, stack_of
        from lorabench.bench.rehearsing.result import OutOfMemory

        frames = [
            {"filename": frame.filename, "line": frame.lineno, "name": frame.name}
            for frame in reversed(traceback.extract_stack())
        ]
        self.out_of_memory = self.out_of_memory or OutOfMemory(
            device=device,
            requested_bytes=requested,
            allocated_bytes=torch.cuda.memory_stats(device)["allocated_bytes.all.current"],
            step=max(self.steps.values(), default=0),
            stack=tuple(stack_of(frames)[:FRAMES_KEPT]),
        )
        self.report()

    def report(self, *, final: bool = True) -> None:
        """Write a report of this process so far. A ``final`` report also says where the peak is."""
        if os.getpid() != self.pid or not _started():  # a forked child does not report for its parent
            return
        import msgspec

        from lorabench.bench.records.atomic_writes import write_atomically
        from lorabench.bench.rehearsing.result import RehearsedGpu, RehearsedProcess

        self._note_peaks()
        peaks = self._where() if final else {}
        process = RehearsedProcess(
            pid=self.pid,
            program=" ".join(sys.argv),
            rank=int(os.environ["RANK"]) if os.environ.get("RANK", "").isdecimal() else None,
            steps=max(self.steps.values(), default=0),
            stopped=self.stopped,
            trainer=self.trainer is not None,
            gpus=tuple(
                RehearsedGpu(
                    index=index,
                    peak_allocated_bytes=allocated,
                    peak_reserved_bytes=reserved,
                    peak_requested_bytes=requested,
                    peak=peaks.get(index),
                )
                for index, (allocated, reserved, requested) in self.peaks.items()
                if allocated
            ),
            out_of_memory=self.out_of_memory,
        )
        write_atomically(self.folder / f"process.{self.pid}.json", msgspec.json.encode(process))

    def _where(self) -> dict[int, Any]:
        import torch

        from lorabench.bench.rehearsing.peak import find_peak

        snapshot: Any = torch.cuda.memory._snapshot()
        if SNAPSHOT in os.environ:
            from lorabench.bench.measuring.meters.allocator_history import write_snapshot

            write_snapshot(snapshot, self.folder / f"snapshot.{self.pid}.json.gz")
        return {
            index: find_peak(events, self.owners, self.step_ends)
            for index, events in enumerate(snapshot["device_traces"])
            if events
        }


def _constants(state: Any) -> Iterator[Any]:
    """Yield the tensors of a bitsandbytes ``QuantState`` and of the one nested in it."""
    for value in vars(state).values() if state is not None else ():
        if type(value) is type(state):
            yield from _constants(value)
        else:
            yield value


def _started() -> bool:
    """Return whether this process has started CUDA."""
    import torch

    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _running_trainer() -> Any:
    """Return the Trainer of transformers whose loop runs in this thread; None if there is none."""
    trainers = sys.modules.get("transformers.trainer")
    frame = sys._getframe(1)
    while trainers is not None and frame is not None:
        if frame.f_globals is vars(trainers):
            runs = _first_argument(frame)
            if isinstance(runs, trainers.Trainer):
                return runs
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _first_argument(frame: Any) -> Any:
    """Return a running function's first argument; None if it has none.

    Until Python 3.12, reading ``f_locals`` leaves a dictionary of the variables on the frame, which would keep the
    tensors of a finished step alive. It is therefore cleared, which does not change the variables themselves.
    """
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    if not names:
        return None
    variables = frame.f_locals
    found = variables.get(names[0])
    if sys.version_info < (3, 13):
        variables.clear()
    return found


def _stopper(observer: Observer) -> Any:
    """Return a callback that ends Trainer's loop, and the program, after the wanted steps."""
    from transformers import TrainerCallback

    class Stopper(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, arguments: Any, state: Any, control: Any, **unused: Any) -> None:
            if observer.wanted_steps and max(observer.steps.values()) >= observer.wanted_steps:
                control.should_training_stop = True

        def on_train_end(self, arguments: Any, state: Any, control: Any, **unused: Any) -> None:
            if observer.wanted_steps and max(observer.steps.values()) >= observer.wanted_steps:
                observer._stop()

    return Stopper()
