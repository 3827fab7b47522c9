"""A ledger of live tensor storages: how many bytes a training step holds, at which moment, for what.

Every operation passes through a dispatch mode, which follows the storages of its results by weak reference, so a
storage counts from the operation that made it until nothing refers to it any more: views and in-place results count
once. It works alike on the CPU, on CUDA and on meta tensors, where nothing is computed. What a kernel allocates and
frees inside one operation is not seen; a trace on meta tells it (`scratch`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lorabench.estimator.memory.breakdown import COMPONENTS, PHASES, Breakdown
from lorabench.estimator.trace.scratch import Scratch
from lorabench.estimator.training.model import Recomputation

if TYPE_CHECKING:
    import torch
    from torch import nn


Execute = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""From an operator and its arguments to its result."""


class StorageLedger:
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
        self.device_types = device_types
        self._scratch = scratch
        self._execute = execute
        self._on_birth = on_birth
        self.loaded_bytes: int | None = None
        """What the base model took before it was prepared and adapted, where somebody who saw it says so."""
        self.adapted_bytes = 0
        self._sids: dict[int, int] = {}
        """id of a live storage → its number here; Python keeps one object for each storage while it lives."""
        self._references: dict[int, weakref.ref[Any]] = {}
        self._sizes: list[int] = []
        self._events: list[int] = []
        """Storage number where it was born, its complement where it died."""
        self._components: dict[int, str] = {}
        """What is known for sure; the rest follows from birth and death."""
        self._recomputed: dict[int, int] = {}
        """Storage made while a layer was recomputed → the number of that recomputation."""
        self._recompute_ends: list[int] = []
        """For each recomputation, the event at which it was over."""
        self._recomputing = False
        self._phases: list[tuple[int, str]] = []
        self._in_head = False
        self._vocabulary = 0
        self._open: ExitStack | None = None

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
        for tensor in _tensors(tensors):
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

    def __enter__(self) -> StorageLedger:
        # Learnt before the ledger's own mode is on.
        references_of_a_gathered_gradient()
        self._open = ExitStack()
        self._open.enter_context(
            _watch_operations(
                self._record,
                self._scratch or {},
                self._execute or _run,
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

    # The answer.

    def breakdown(self) -> Breakdown:
        """Return the bytes of the last step at its peak, by component, and the peak of each of its phases."""
        components = self._attribute()
        held = dict.fromkeys(COMPONENTS, 0)
        live = peak = 0
        at_peak, peak_phase = dict(held), "adapted"
        phase_peaks = {} if self.loaded_bytes is None else {"loaded": self.loaded_bytes}
        phase_peaks["adapted"] = self.adapted_bytes
        phases = iter([*self._phases, (len(self._events) + 1, "")])
        phase, (next_start, next_phase) = "", next(phases)
        for index, event in enumerate([*self._events, None]):
            while index >= next_start:
                phase = next_phase
                next_start, next_phase = next(phases)
                if phase:
                    phase_peaks[phase] = max(phase_peaks.get(phase, 0), live)
            if event is None:
                break
            sid = event if event >= 0 else ~event
            size = self._sizes[sid] if event >= 0 else -self._sizes[sid]
            live += size
            held[components[sid]] += size
            if phase and live > phase_peaks[phase]:
                phase_peaks[phase] = live
            if phase and live > peak:
                peak, peak_phase, at_peak = live, phase, dict(held)
        return Breakdown(components=at_peak, phase=peak_phase, peak_allocated_bytes=peak, phase_peaks_bytes=phase_peaks)

    def allocations(self) -> list[tuple[int, int]]:
        """Return every allocation and free since the beginning: the storage's number, and its bytes or 0 for a free."""
        return [(event, self._sizes[event]) if event >= 0 else (~event, 0) for event in self._events]

    def live_bytes_of_step(self) -> Iterator[tuple[int, str, int]]:
        """Yield the number and phase of each event of the last step, and the live bytes after it."""
        live = 0
        phases = iter([*self._phases, (len(self._events), "")])
        phase, (next_start, next_phase) = "", next(phases)
        for index, event in enumerate(self._events):
            while index >= next_start:
                phase = next_phase
                next_start, next_phase = next(phases, (len(self._events) + 1, ""))
            live += self._sizes[event] if event >= 0 else -self._sizes[~event]
            if phase:
                yield index, phase, live

    def peak_event(self) -> int:
        """Return the number of the event that completes the last step's peak: an allocation."""
        points = self.live_bytes_of_step()
        return max(points, key=lambda point: point[2])[0]

    def storage_of(self, event: int) -> int:
        """Return the number of the storage that ``event`` made or freed."""
        made = self._events[event]
        return made if made >= 0 else ~made

    def alive_after(self, event: int) -> Iterator[tuple[int, str, int]]:
        """Yield number, component and bytes of each storage that is alive after ``event``."""
        components = self._attribute()
        freed = {~made for made in self._events[: event + 1] if made < 0}
        for made in self._events[: event + 1]:
            if made >= 0 and made not in freed:
                yield made, components[made], self._sizes[made]

    def _attribute(self) -> list[str]:
        """Return the component of every storage: what outlives its forward pass or recomputation was saved by it."""
        died = {~event: index for index, event in enumerate(self._events) if event < 0}
        never = len(self._events)
        components = ["buffers"] * len(self._sizes)
        phases = iter(self._phases)
        phase, end = "", 0
        upcoming = next(phases, None)
        for index, event in enumerate(self._events):
            while upcoming is not None and index >= upcoming[0]:
                phase = upcoming[1]
                upcoming = next(phases, None)
                end = upcoming[0] if upcoming is not None else never
            if event < 0 or not phase:
                continue
            saved_until = end if phase == "forward" else never + 1
            if event in self._recomputed:
                saved_until = self._recompute_ends[self._recomputed[event]]
            outlives = died.get(event, never) >= saved_until
            components[event] = "activations" if outlives else "temporaries"
        for sid, component in self._components.items():
            components[sid] = component
        return components

    # Following storages.

    def _live_bytes(self) -> int:
        return sum(self._sizes[sid] for sid in self._sids.values())

    def _record(self, operation: Any, result: Any) -> None:
        import torch

        if Recomputation.running != self._recomputing:
            self._recomputing = Recomputation.running
            if not self._recomputing:
                self._recompute_ends[-1] = len(self._events)
            else:
                self._recompute_ends.append(0)
        for tensor in (result,) if isinstance(result, torch.Tensor) else _tensors((result,)):
            known = len(self._sizes)
            sid = self._follow(tensor, operation)
            if sid is None:
                continue
            if sid < known:
                continue
            if self._recomputing:
                self._recomputed[sid] = len(self._recompute_ends) - 1
            if self._in_head and tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary:
                self._components[sid] = "logits"

    def _follow(self, tensor: torch.Tensor, operation: Any = None) -> int | None:
        """Return the number of the tensor's storage, a new one if it was not followed; None if it takes no bytes."""
        storage = tensor.untyped_storage()
        key = id(storage)
        sid = self._sids.get(key)
        size = storage.nbytes()
        if sid is not None:
            if self._sizes[sid] == size:
                return sid
            # It was resized in place: to the ledger, another storage in its stead.
            self._events.append(~sid)
            component = self._components.get(sid)
        elif size == 0 or tensor.device.type not in self.device_types:
            return None
        else:
            component = None
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))
        sid = len(self._sizes)
        self._sizes.append(size)
        self._sids[key] = sid
        self._events.append(sid)
        if self._on_birth is not None:
            self._on_birth(sid, tensor, operation)
        if component is not None:
            self._components[sid] = component
        return sid

    def _forget(self, key: int) -> None:
        self._events.append(~self._sids.pop(key))
        del self._references[key]

    def _put(self, zeros: torch.Tensor, total: torch.Tensor) -> None:
        """Let ``total`` take over the storage of ``zeros``, to which autograd would have added in place.

        The gradient of ``x[index]`` is put into zeros in place (`index_backward` of torch's FunctionsManual.cpp); but
        out of place under a dispatch mode such as this ledger's.
        """
        sid = self._sids.get(id(zeros.untyped_storage()))
        if sid is not None:
            self._take_over(sid, zeros, total)

    def _accumulate(self, gathered: torch.Tensor, total: torch.Tensor) -> None:
        """Let ``total`` take over the storage of ``gathered`` where autograd would have added to it in place.

        Where gradients meet, autograd adds the second to the first in place if nobody else holds it
        (torch/csrc/autograd/input_buffer.cpp); but never under a dispatch mode such as this ledger's, nor on meta.
        """
        storage = gathered.untyped_storage()
        sid = self._sids.get(id(storage))
        if (
            sid is None
            or _sharers(storage) != 1
            or gathered._is_view()
            or _use_count(gathered) != references_of_a_gathered_gradient()
            or gathered.numel() * gathered.element_size() != storage.nbytes()
            or (total.shape, total.dtype) != (gathered.shape, gathered.dtype)
        ):
            return
        self._take_over(sid, gathered, total)

    def _take_over(self, sid: int, former: torch.Tensor, total: torch.Tensor) -> None:
        """Let the storage of ``total`` be number ``sid`` from now on, which that of ``former`` was."""
        key = id(former.untyped_storage())
        del self._sids[key], self._references[key]
        taker = total.untyped_storage()
        key = id(taker)
        self._sids[key] = sid
        self._references[key] = weakref.ref(taker, lambda _: self._forget(key))


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every tensor that ``model`` holds, with its component: parameters, 4-bit constants, buffers, loose ones."""
    frozen_any = any(not parameter.requires_grad for parameter in model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield "quantized_weights", (parameter, *_quantization_constants(state))
        else:
            yield "adapters" if parameter.requires_grad and frozen_any else "weights", parameter
    for module in model.modules():
        yield "buffers", list(module.buffers(recurse=False))
        yield "buffers", list(vars(module).values())


def model_bytes(model: nn.Module, *device_types: str) -> int:
    """Return the bytes of all storages that ``model`` holds on ``device_types``, each once."""
    held = (tensor for _, tensor in model_tensors(model))
    storages = {
        id(storage): storage.nbytes()
        for tensor in _tensors(held)
        if tensor.device.type in device_types
        for storage in [tensor.untyped_storage()]
    }
    return sum(storages.values())


def _quantization_constants(state: Any) -> Iterator[Any]:
    yield from (state.absmax, state.code, state.offset)
    if state.state2 is not None:
        yield from (state.state2.absmax, state.state2.code)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _watch_operations(
    record: Callable[[Any, Any], None],
    scratch: Scratch,
    execute: Execute,
    accumulate: Callable[[torch.Tensor, torch.Tensor], None],
    put: Callable[[torch.Tensor, torch.Tensor], None],
    *,
    compiles: bool,
) -> Any:
    """Return a context in which ``record`` gets every operation and its result, after what ``scratch`` says of it.

    ``execute`` runs the operations. ``accumulate`` gets the first addend and the sum wherever gradients are added up;
    ``put`` gets the zeros and what became of them wherever the gradient of indexed rows is put back in their places.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    in_place = {torch.ops.aten.add.Tensor: accumulate, torch.ops.aten.index_put.default: put}
    no_torch_functions: Any = torch._C.DisableTorchFunction

    class InsideKernel(TorchFunctionMode):
        """Sees the operations of a kernel that is written in Python, where no dispatch mode reaches."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            record(func, result)
            return result

    class Special(NamedTuple):
        """What is special about an operator."""

        holds: Callable[..., list[torch.Tensor]] | None
        in_python: bool
        take_over: Callable[[torch.Tensor, torch.Tensor], None] | None

    def special(operator: Any) -> Special:
        in_python = operator.namespace == "bitsandbytes" and "gemm_4bit" in operator.name()
        return Special(scratch.get(operator), in_python, in_place.get(operator))

    specials: dict[int, Special] = {}
    """By identity: operators live as long as torch does, and hash slowly."""

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Sees every operation, also those of the backward pass."""

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # Where nothing is compiled, to switch the compiler off at every operation only takes time.
            return compiles

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            known = specials.get(id(func))
            if known is None:
                known = specials[id(func)] = special(func)
            holds, in_python, take_over = known
            # A mode for torch functions that is on here would see every question to a tensor.
            with no_torch_functions():
                held = holds(*args, **kwargs) if holds is not None else None
                if held:
                    record(func, held)
                if not in_python:
                    result = execute(func, args, kwargs)
                    if take_over is not None and _adds_gradients():
                        take_over(args[0], result)
                    record(func, result)
                    return result
            with InsideKernel():
                result = func(*args, **kwargs)
            record(func, result)
            return result

    return Watch()  # type: ignore[no-untyped-call]


def _run(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return operator(*args, **kwargs)


def _adds_gradients() -> bool:
    """Tell whether an addition that runs now is autograd's own, of gradients that meet."""
    import torch

    return not torch.is_grad_enabled() and torch._C._current_autograd_node() is not None


def _sharers(storage: Any) -> int:
    """Return how many tensors are on ``storage``."""
    import torch

    owners: int = torch._C._storage_Use_Count(storage._cdata)
    return owners - 1  # but for the Python object that ``storage`` is


def _use_count(tensor: Any) -> int:
    """Return how many references torch counts to ``tensor``."""
    count: int = tensor._use_count()
    return count


@cache
def references_of_a_gathered_gradient() -> int:
    """Return how many references a gradient has, seen from a dispatch mode, that only autograd holds."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[int] = []

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Counts the references of the first addend."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.add.Tensor and _adds_gradients():
                seen.append(_use_count(args[0]))
            return func(*args, **(kwargs or {}))

    root = torch.ones(1, requires_grad=True) * 1
    with Count():  # type: ignore[no-untyped-call]
        (root * 2 + root * 3).backward()  # type: ignore[no-untyped-call]
    return seen[0]
