"""Small tensors get real values: operations on them are also done on the host, on the same bytes.

Masks, positions, labels and counts decide what a program does next: which attention kernel runs, whether a batch is
packed, how many tokens an expert gets. So tensors of integers and booleans, and small tensors of floats, hold the
values that a GPU would compute. This holds if they follow from values that the program put there. Values that depend on
weights or activations, which have no contents, are guessed (`guesses`). If a guess decides a branch or a shape, it is
noted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lorabench.bench.null_gpu.inside import guesses, shapes
from lorabench.bench.null_gpu.inside.host_views import INTEGERS, MOST_GUESSED, host_view, is_real
from lorabench.bench.null_gpu.inside.knowledge import Knowledge, covers
from lorabench.bench.null_gpu.inside.notes import note, note_read
from lorabench.bench.null_gpu.inside.operations import ON_THE_HOST, Operation, operation, tensors_of

aten = torch.ops.aten

LEAVES_OPERATIONS_TO_TORCH: Any = torch._C._disabled_torch_dispatch_impl
"""Attribute of tensor subclasses that do not decompose operations, parameters among them."""
BYTES_REALLY_COPIED = 2**20
"""The same as in addresses.h."""
TRACERS = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
    torch._C._TorchDispatchModeKey.PROXY,
)
"""Modes of the compiler, which torch calls after this one."""
OF_THE_DEVICE = ("pin_memory", "generator")
"""Arguments that are not passed to the operation on the host."""


class RealValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs at every operation of a thread, below autograd."""

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.knowledge = knowledge
        self.random_state = torch.Generator().get_state()

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Skip torch's guard against compiling this class, since it imports the compiler into every program."""
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile compile. Compiled code has no real values inside."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` on the null GPU, then give its small results their values."""
        kwargs = kwargs or {}
        traced = any(torch._C._get_dispatch_mode(key) is not None for key in TRACERS)
        if traced or not isinstance(func, torch._ops.OpOverload):
            return func(
                *args, **kwargs
            )  # tensors of a tracer; or a higher-order operator, whose inner operations come here
        for each in types:
            if each.__torch_dispatch__ is not LEAVES_OPERATIONS_TO_TORCH:
                return NotImplemented  # a subclass decomposes the operation first
        if func is aten.add.Tensor and _adds_up_alone(args[0]):
            func = aten.add_.Tensor
        of_this = operation(func)
        if of_this.counted:
            return self._of_counted_shape(func, of_this, args, kwargs)
        return self._do(func, of_this, args, kwargs)

    def _do(self, func: Any, of_this: Operation, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if func is aten.lift_fresh.default:
            # torch.tensor has copied numbers of the program to the device without an operation.
            if out.numel() * out.element_size() <= BYTES_REALLY_COPIED:
                self.knowledge.learn(out)
            return out
        if of_this.is_view:
            return out
        changed = of_this.changed(args, kwargs) if of_this.changes else []
        made = [each for each in tensors_of(out) if not any(each is other for other in changed)]
        if not changed and not of_this.collective and not any(is_real(each, known=True) for each in made):
            if func is aten._local_scalar_dense.default:
                self._note_decision("branch", args, func)
                self._note_read(args[0], func)
            return out
        given = [*tensors_of(args), *tensors_of(kwargs)]
        if not any(each.device.type == "cuda" for each in (*given, *made)):
            return out
        if of_this.collective:
            for each in (*given, *made):
                if each.dtype in INTEGERS and each.numel() * each.element_size() <= BYTES_REALLY_COPIED:
                    self.knowledge.learn(each)  # absent ranks hold what this one holds; others sent theirs
                else:
                    self.knowledge.forget(each)
        elif not of_this.computed:
            self._guess(made)
            self._forget(changed)
        elif func is aten._amp_foreach_non_finite_check_and_unscale_.default:
            self._forget(args[0])  # gradients are finite, so the flag stays as it is
        else:
            self._compute(func, of_this, args, kwargs, given, made, changed)
        return out

    def _compute(
        self,
        func: Any,
        of_this: Operation,
        args: Any,
        kwargs: Any,
        given: list[Any],
        made: list[Any],
        changed: list[Any],
    ) -> None:
        read = given
        if of_this.reads_no_values:
            read = []
        elif of_this.overwrites:
            read = [each for each in given if not any(each is other for other in changed)]
        known = self._knows(read) and not (
            of_this.random and any(each.is_floating_point() for each in (*made, *changed))
        )
        if not known:
            answer = guesses.answer_if_finite(func, args)
            if answer is not None:
                for each in made:
                    fill(each, answer)
                    self.knowledge.learn(each)
                return
            choice = guesses.CHOICES.get(func)
            if choice is not None:
                self._guess(made, choice(*args, **kwargs))
                note("balanced", str(func))
                for each in made:
                    if each.dtype in INTEGERS:
                        self.knowledge.learn(each)  # by construction; later operations on it need no note
                return
        if not all(is_real(each, known=self.knowledge.knows(each)) for each in read) or not all(
            is_real(each, known=known) for each in (*made, *changed)
        ):
            self._guess(made)
            self._forget(changed)
            return
        whole = [self.knowledge.knows(each) or covers(each) for each in changed]
        try:
            with self._own_random_numbers() if of_this.random else nullcontext():
                values = ON_THE_HOST.get(func, func)(*tree_map(on_host, args), **host_arguments(kwargs))
        except Exception as error:  # the host's kernels refuse operations in many ways
            if known:
                note("not computed", f"{func}: {str(error).partition('.')[0]}")
            self._guess(made)
            self._forget(changed)
            return
        if not changed:
            for each, value in zip(made, tensors_of(values), strict=True):
                host_view(each).copy_(value)
        for each in made:
            self._settle(each, known)
        for each, is_whole in zip(changed, whole, strict=True):
            self._settle(each, known and is_whole)

    def _of_counted_shape(self, func: Any, of_this: Operation, args: Any, kwargs: Any) -> Any:
        given = list(tensors_of(args))
        deciding = given
        if func in shapes.INDEXED:
            deciding = shapes.masks_among(args[1])
        elif func in shapes.MASKED:
            deciding = [args[1]]
        if not any(each.device.type == "cuda" for each in deciding):
            return self._do(func, of_this, args, kwargs)
        self._note_decision("shape", deciding, func)
        counts = shapes.counts_of(func, args)
        if counts:
            with shapes.answering(counts):
                return self._do(func, of_this, args, kwargs)
        # Other results whose size kernels count: the result is copied from the host.
        known = self._knows(given)
        if not all(is_real(each, known=known) for each in given):
            raise NotImplementedError(
                f"null GPU: the shape of {func}'s result depends on many floats, which it has not"
            )
        device = given[0].device
        values = func(*tree_map(on_host, args), **host_arguments(kwargs))
        made = tree_map(lambda each: shapes.on_device(each, device) if isinstance(each, torch.Tensor) else each, values)
        for each in tensors_of(made):
            self._settle(each, known)
        return made

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Draw random numbers from a separate sequence, and leave the program's own as it is."""
        programs = torch.get_rng_state()
        torch.set_rng_state(self.random_state)
        try:
            yield
        finally:
            self.random_state = torch.get_rng_state()
            torch.set_rng_state(programs)

    def _settle(self, tensor: torch.Tensor, known: bool) -> None:
        """Note whether a computed tensor is known; keep a guess finite."""
        if known:
            self.knowledge.learn(tensor)
            return
        self.knowledge.forget(tensor)
        if tensor.is_floating_point():
            values = host_view(tensor)
            values.masked_fill_(~values.isfinite(), guesses.PLAUSIBLE)

    def _guess(self, made: list[torch.Tensor], indices: torch.Tensor | None = None) -> None:
        """Give plausible values to results that were not computed; integers get ``indices`` if the shape matches."""
        self._forget(made)
        for each in made:
            if each.dtype in INTEGERS and indices is not None and indices.shape == each.shape:
                host_view(each).copy_(indices)
            elif each.dtype in INTEGERS:
                fill(each, 0)
            elif each.numel() <= MOST_GUESSED and each.is_floating_point():
                fill(each, guesses.PLAUSIBLE)

    def _knows(self, tensors: Iterable[torch.Tensor]) -> bool:
        return all(map(self.knowledge.knows, tensors))

    def _forget(self, tensors: Iterable[torch.Tensor]) -> None:
        for each in tensors:
            self.knowledge.forget(each)

    def _note_read(self, read: torch.Tensor, func: Any) -> None:
        """Note that the program reads a guessed float, which it may log or decide by."""
        if read.is_floating_point() and not self.knowledge.knows(read):
            note_read(str(func))

    def _note_decision(self, kind: str, deciding: Any, func: Any) -> None:
        """Note that the program decides a branch or a shape by guessed integers or booleans."""
        if any(each.dtype in INTEGERS and not self.knowledge.knows(each) for each in tensors_of(deciding)):
            note(kind, str(func))


def fill(tensor: torch.Tensor, value: float) -> None:
    """Fill ``tensor`` with ``value``. Many zeros are written on the device: there they take no host memory."""
    if tensor.numel() > MOST_GUESSED and not value and tensor.device.type == "cuda":
        tensor.zero_()
    else:
        host_view(tensor).fill_(value)


def host_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments for the host."""
    return {name: tree_map(on_host, each) for name, each in kwargs.items() if name not in OF_THE_DEVICE}


def on_host(value: Any) -> Any:
    """Return the host's counterpart of an argument."""
    if isinstance(value, torch.Tensor):
        return host_view(value)
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


OWNERS_OF_A_SUM = 4
"""Owners of a gradient that only autograd references, while this mode sees an addition to it: autograd, the
operation's stack, its Python object, and the call that counts."""


def _adds_up_alone(first: Any) -> bool:
    """Return whether autograd would add to ``first`` in place without this mode.

    It adds in place if it is the only owner of the gradient and of its storage (`can_accumulate_inplace` of torch's
    input_buffer.cpp). If this mode has seen the gradient, its Python object is another owner, so autograd adds out of
    place. A view, such as the weight gradient of a linear layer, shares its storage with its base.
    """
    by_autograd = sys._getframe(1).f_back is None and not torch.is_grad_enabled()
    return by_autograd and not first._is_view() and first._use_count() == OWNERS_OF_A_SUM
