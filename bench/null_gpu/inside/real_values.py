"""Small tensors get real values: operations on them are also done on the host, on the same bytes.

Masks, positions, labels and counts decide what a program does next: which attention kernel runs, whether a batch is
packed, how many tokens an expert gets. So tensors of integers and booleans, and small ones of floats, hold what a GPU
would compute, as far as it follows from values that the program put there. What follows from weights and activations,
which have no values, is guessed (`guesses`). If a guess decides a branch or a shape, that is noted.
"""

from __future__ import annotations

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
"""What subclasses have in place of a function that takes operations apart; parameters among them."""
BYTES_REALLY_COPIED = 2**20
"""As addresses.h has it."""
TRACERS = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
    torch._C._TorchDispatchModeKey.PROXY,
)
"""Of the compiler; they are asked after this one."""
OF_THE_DEVICE = ("pin_memory", "generator")
"""Arguments that do not go to the host."""


class RealValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a thread, below autograd."""

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.knowledge = knowledge
        self.random_state = torch.Generator().get_state()

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave out torch's guard against compiling this very class, which imports the compiler into every program."""
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile compile; what it compiles has no real values inside."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was asked for on the null GPU, then give its small results their values."""
        kwargs = kwargs or {}
        traced = any(torch._C._get_dispatch_mode(key) is not None for key in TRACERS)
        if traced or not isinstance(func, torch._ops.OpOverload):
            return func(
                *args, **kwargs
            )  # the tensors are no real ones; or an operator over functions, whose own come here
        for each in types:
            if each.__torch_dispatch__ is not LEAVES_OPERATIONS_TO_TORCH:
                return NotImplemented  # a subclass first takes itself apart
        of_this = operation(func)
        if of_this.counted:
            return self._of_counted_shape(func, of_this, args, kwargs)
        return self._do(func, of_this, args, kwargs)

    def _do(self, func: Any, of_this: Operation, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if func is aten.lift_fresh.default:
            # torch.tensor has copied numbers of the program to the device, out of sight.
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
                    self.knowledge.learn(each)  # absent ranks hold what this one holds; present ones said it
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
                        self.knowledge.learn(each)  # by construction; what follows from it need not be noted again
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
        except Exception as error:  # what the host's kernels cannot do, of many kinds
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
        # What else is counted inside of kernels: the result is taken from the host.
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
        """Draw random numbers from a sequence that is not the program's own."""
        programs = torch.get_rng_state()
        torch.set_rng_state(self.random_state)
        try:
            yield
        finally:
            self.random_state = torch.get_rng_state()
            torch.set_rng_state(programs)

    def _settle(self, tensor: torch.Tensor, known: bool) -> None:
        """Note whether a tensor that was computed is known; a guess stays finite."""
        if known:
            self.knowledge.learn(tensor)
            return
        self.knowledge.forget(tensor)
        if tensor.is_floating_point():
            values = host_view(tensor)
            values.masked_fill_(~values.isfinite(), guesses.PLAUSIBLE)

    def _guess(self, made: list[torch.Tensor], indices: torch.Tensor | None = None) -> None:
        """Give results that were not computed plausible values; ``indices`` to those of integers."""
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
        """Note that the program reads a float that is a guess. It may be logged, or decide something."""
        if read.is_floating_point() and not self.knowledge.knows(read):
            note_read(str(func))

    def _note_decision(self, kind: str, deciding: Any, func: Any) -> None:
        """Note what the program decides by integers or booleans that are guesses."""
        if any(each.dtype in INTEGERS and not self.knowledge.knows(each) for each in tensors_of(deciding)):
            note(kind, str(func))


def fill(tensor: torch.Tensor, value: float) -> None:
    """Write ``value`` everywhere; zeros on the device, where many of them take no memory of the host."""
    if tensor.numel() > MOST_GUESSED and not value and tensor.device.type == "cuda":
        tensor.zero_()
    else:
        host_view(tensor).fill_(value)


def host_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments for the host."""
    return {name: tree_map(on_host, each) for name, each in kwargs.items() if name not in OF_THE_DEVICE}


def on_host(value: Any) -> Any:
    """Return what stands for an argument on the host."""
    if isinstance(value, torch.Tensor):
        return host_view(value)
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value
