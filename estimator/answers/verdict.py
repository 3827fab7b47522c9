"""The verdict: whether a recipe fits a GPU, its margin, and changes that make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, islice
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from lorabench.estimator.answers.support import lacks_library
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training, is_replayed
from lorabench.estimator.devices.device import DRIVER_BYTES, Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.allocator_settings import DEFAULTS, VARIABLES, AllocatorSettings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.context import context_of
from lorabench.estimator.memory.replayed import Replayed
from lorabench.estimator.memory.reserved import PERSISTENT, reserve, working_bytes
from lorabench.estimator.memory.states import states
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import OFF, Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

LENGTH_STEP = 128
"""Lengths below the model's maximum are searched in multiples of this."""
LARGEST_BATCH = LONGEST_SEQUENCE = 2**31 - 1
"""The largest batch size and the longest sequence of a `Recipe`."""
MOST_CHANGES = 3
"""The largest number of changes that are returned."""


Fit = Literal["fits", "tight", "does not fit"]


class Change(Struct, frozen=True, kw_only=True):
    """One or two changes that make a recipe fit."""

    settings: dict[str, Any]
    """Name in the recipe, or environment variable → new value."""
    device_total_most_bytes: int
    """Upper end of the device total after the changes."""


class Verdict(NamedTuple):
    """The comparison of a recipe with a GPU: the fields of `Estimate` with the same names."""

    answer: Fit
    margin_bytes: int
    largest_batch_size: int | None
    longest_seq_len: int | None
    changes: tuple[Change, ...]


def judge(
    resolved: ResolvedRecipe,
    memory: Breakdown,
    device: Device,
    training: Training | None = None,
    *,
    allocator: AllocatorSettings = DEFAULTS,
) -> Verdict:
    """Return whether the recipe, with its ``memory``, fits ``device``.

    With the recipe's ``training`` on the device, of which ``memory`` is the replay, the verdict is that of torch's
    ``allocator``, which gives cached segments back before it fails. Without it, the verdict is by the upper end of the
    range of ``memory``.
    """
    usable = usable_bytes(device, allocator)
    search = _Search(device, usable) if training is None else _ReplayedSearch(device, usable, training, memory)
    setup = _Setup(resolved, allocator)
    answer, margin = search.judge(setup, memory)
    return Verdict(
        answer=answer,
        margin_bytes=margin,
        largest_batch_size=search.largest_batch_size(setup),
        longest_seq_len=search.longest_seq_len(setup),
        changes=() if answer == "fits" else tuple(islice(search.changes(setup), MOST_CHANGES)),
    )


def usable_bytes(device: Device, allocator: AllocatorSettings = DEFAULTS) -> int:
    """Return the bytes of ``device`` that a process can use, its CUDA context included."""
    if allocator.limit is None:
        return device.usable_bytes
    return min(device.usable_bytes, allocator.limit + context_of(device.compute_capability).most)


class ReplayedVerdict(NamedTuple):
    """A recipe's verdict by a replay of the allocator: as in `Verdict`, without a search for other settings."""

    fits: bool
    margin_bytes: int
    device_total_most_bytes: int
    """Upper end of its device total."""


def replayed_verdict(
    resolved: ResolvedRecipe, device: Device, allocator: AllocatorSettings = DEFAULTS
) -> ReplayedVerdict:
    """Return what `judge` with a replay says of the recipe itself, or without one if the model is not replayed.

    Raises:
        UserError: as in `replayed_memory`.
    """
    if is_replayed(resolved.spec):
        training = Training(resolved, device.compute_capability, device.multiprocessors)
        memory = training.memory(allocator)
        search = _ReplayedSearch(device, usable_bytes(device, allocator), training, memory)
        answer, margin = search.judge(_Setup(resolved, allocator), memory)
    else:
        memory = estimate_memory(resolved, compute_capability=device.compute_capability)
        answer, margin = verdict_and_margin(memory, device.memory_bytes)
    assert memory.device_total_range_bytes is not None
    return ReplayedVerdict(answer == "fits", margin, memory.device_total_range_bytes[1])


def verdict_and_margin(memory: Breakdown, device_bytes: int) -> tuple[Fit, int]:
    """Return whether an estimate for CUDA fits a GPU of ``device_bytes``, and the margin in the worst case.

    If reserved bytes have a range, it is tight if the point estimate is within the memory. If they were replayed, it is
    tight if the allocated blocks are, since the allocator may give cached segments back.
    """
    assert memory.device_total_bytes is not None
    assert memory.device_total_range_bytes is not None
    point = memory.device_total_bytes
    if memory.peak_reserved_bytes is not None and memory.peak_reserved_range_bytes is None:
        context = memory.device_total_bytes - memory.peak_reserved_bytes
        point = memory.peak_allocated_bytes + context
    return verdict_by_range(point, memory.device_total_range_bytes[1], device_bytes)


def verdict_by_range(point: int, most: int, device_bytes: int) -> tuple[Fit, int]:
    """Return whether a device total of ``point``, and ``most`` at its upper end, fits, and the margin at that end."""
    margin = device_bytes - DRIVER_BYTES - most
    if margin >= 0:
        return "fits", margin
    return "tight" if point <= device_bytes else "does not fit", margin


def states_fit(resolved: ResolvedRecipe, device: Device, usable: int) -> bool:
    """Return whether the persistent memory alone fits into ``usable`` bytes of ``device``: a cheap first check."""
    held = states(resolved, "cuda")
    return context_of(device.compute_capability).most + sum(held.component_bytes(name) for name in PERSISTENT) <= usable


class _Setup(NamedTuple):
    resolved: ResolvedRecipe
    allocator: AllocatorSettings = DEFAULTS

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    def replaced(self, **fields: Any) -> _Setup:
        """Return the setup with other values of some fields of `Recipe`."""
        return self._replace(resolved=self.resolved.replaced(**fields))


class _Search:
    """Searches for settings that fit a device."""

    def __init__(self, device: Device, usable: int) -> None:
        self.device = device
        self.usable = usable
        self.context = context_of(device.compute_capability)
        self.half = "float16" if device.supports_bfloat16 is False else "bfloat16"

    def judge(self, setup: _Setup, memory: Breakdown) -> tuple[Fit, int]:
        """Return whether ``setup``, with its ``memory``, fits, and the margin in bytes in the worst case."""
        return verdict_and_margin(memory, self.device.memory_bytes)

    def fits(self, setup: _Setup) -> bool:
        """Return whether the upper end of the device total is within the usable bytes."""
        return self.device_total(setup) <= self.usable

    def hopeless(self, setup: _Setup) -> bool:
        """Return whether the persistent memory alone is too large. This is quicker than `fits`."""
        return not states_fit(setup.resolved, self.device, self.usable)

    def device_total(self, setup: _Setup) -> int:
        """Return the upper end of the device total."""
        compute_capability = self.device.compute_capability
        components = estimate_memory(setup.resolved, compute_capability=compute_capability).components
        taken = reserve(
            components,
            compute_capability=compute_capability,
            expandable_segments=setup.allocator.expandable_segments,
        )
        return int(taken.device_total_range[1])

    def largest_batch_size(self, setup: _Setup) -> int | None:
        """Return the largest batch size that fits."""
        return self.largest(lambda batch_size: setup.replaced(batch_size=batch_size), LARGEST_BATCH)

    def longest_seq_len(self, setup: _Setup) -> int | None:
        """Return the longest sequence that fits: the model's maximum, if it has one, or a multiple of `LENGTH_STEP`."""
        maximum = setup.resolved.spec.max_position_embeddings
        if maximum and self.fits(setup.replaced(seq_len=maximum)):
            return maximum
        longest = maximum or LONGEST_SEQUENCE
        steps = self.largest(lambda steps: setup.replaced(seq_len=steps * LENGTH_STEP), longest // LENGTH_STEP)
        return None if steps is None else steps * LENGTH_STEP

    def largest(self, sized: Callable[[int], _Setup], most: int) -> int | None:
        """Return the largest number up to ``most`` whose setup fits; None if 1 does not."""
        return _largest(lambda number: self.fits(sized(number)), most)

    def changes(self, setup: _Setup) -> Iterator[Change]:
        """Yield single changes that make ``setup`` fit; if there are none, pairs of changes.

        Pairs are sorted by the more intrusive of their two changes, then by the other one.
        """
        for count in (1, 2):
            found = False
            sets = combinations(enumerate(self._least_intrusive_first()), count)
            for chosen in sorted(sets, key=lambda pairs: [rank for rank, _ in reversed(pairs)]):
                change = self._try(setup, [change for _, change in chosen])
                if change is not None:
                    found = True
                    yield change
            if found:
                return

    def _try(self, setup: _Setup, changes: list[Callable[[_Setup], _Setup | None]]) -> Change | None:
        """Return the combined changes; None if they change nothing, are impossible, or are not enough."""
        changed = setup
        try:
            for change in changes:
                following = change(changed)
                if following is None:
                    return None
                changed = following
            refuse_impossible(changed.resolved)
            if self.hopeless(changed) or (total := self.device_total(changed)) > self.usable:
                return None
        except UserError:
            return None
        return Change(settings=_differences(setup, changed), device_total_most_bytes=total)

    def _least_intrusive_first(self) -> list[Callable[[_Setup], _Setup | None]]:
        return [
            self._expandable_segments,
            self._dropped_outputs,
            self._fused_loss,
            self._gradient_checkpointing,
            self._no_preparation,
            self._smaller_optimizer_states,
            self._accumulation,
            self._half_precision,
            self._lora,
            self._qlora,
            self._shorter,
        ]

    def _with(self, setup: _Setup, **settings: Any) -> _Setup:
        """Return ``setup`` with other settings. Settings that did not apply before have their default.

        Raises:
            UserError: settings contradict each other.
        """
        changed = setup.recipe.settings() | settings
        del changed["model"]
        return setup._replace(resolved=recipe_for(setup.resolved.spec, **changed))

    # Each returns the setup with one change, or None if it changes nothing or is impossible.

    def _expandable_segments(self, setup: _Setup) -> _Setup | None:
        return None if setup.allocator.expandable_segments else setup._replace(allocator=setup.allocator.expandable())

    def _dropped_outputs(self, setup: _Setup) -> _Setup | None:
        return self._with(setup, keep_outputs=False) if setup.recipe.keep_outputs else None

    def _fused_loss(self, setup: _Setup) -> _Setup | None:
        return None if setup.recipe.fused_loss is not None else self._with(setup, loss="liger")

    def _gradient_checkpointing(self, setup: _Setup) -> _Setup | None:
        return None if setup.recipe.gradient_checkpointing else self._with(setup, gradient_checkpointing=True)

    def _no_preparation(self, setup: _Setup) -> _Setup | None:
        return self._with(setup, prepare_kbit=False, recast=None) if setup.recipe.prepared else None

    def _smaller_optimizer_states(self, setup: _Setup) -> _Setup | None:
        optim = OPTIMIZERS[setup.recipe.optim].smaller
        if optim is None or lacks_library(optim, self.device):
            return None
        return self._with(setup, optim=optim)

    def _accumulation(self, setup: _Setup) -> _Setup | None:
        recipe = setup.recipe
        if recipe.batch_size == 1:
            return None
        return self._with(setup, batch_size=1, gradient_accumulation=recipe.gradient_accumulation * recipe.batch_size)

    def _half_precision(self, setup: _Setup) -> _Setup | None:
        recipe = setup.recipe
        if recipe.dtype != "float32" or (recipe.adapter is None and self.half == "float16"):
            return None  # trained weights need bfloat16's range
        return self._with(setup, dtype=self.half)

    def _lora(self, setup: _Setup) -> _Setup | None:
        return self._with(setup, method="lora", dtype=self._half_of(setup)) if setup.recipe.adapter is None else None

    def _qlora(self, setup: _Setup) -> _Setup | None:
        if setup.recipe.quantization is not None or self.device.supports_bitsandbytes is False:
            return None
        return self._with(setup, method="qlora", dtype=self._half_of(setup))

    def _half_of(self, setup: _Setup) -> str | None:
        return self.half if setup.recipe.dtype == "float32" else setup.recipe.dtype

    def _shorter(self, setup: _Setup) -> _Setup | None:
        longest = None if self.hopeless(setup) else self.longest_seq_len(setup)
        if longest is None or longest >= setup.recipe.seq_len:
            return None
        return self._with(setup, seq_len=longest)


class _ReplayedSearch(_Search):
    """Searches by replays of the allocator, which gives cached segments back before it fails."""

    def __init__(self, device: Device, usable: int, training: Training, memory: Breakdown) -> None:
        """Begin with the ``training`` of the recipe itself, and its replayed ``memory``."""
        super().__init__(device, usable)
        assert memory.peak_reserved_bytes is not None
        surplus = memory.peak_reserved_bytes - memory.peak_requested_bytes
        self._surplus = surplus / working_bytes(memory.components)
        """What the allocator reserves beyond the tensors, as a share of the working bytes."""
        self._trainings = {_smallest(training.resolved): training}
        """Recipe with the smallest batch and length → one of its trainings."""

    def _training(self, setup: _Setup) -> Training:
        gpu = self.device.compute_capability, self.device.multiprocessors
        smallest = _smallest(setup.resolved)
        training = Training(setup.resolved, *gpu, resizes=self._trainings.get(smallest))
        self._trainings.setdefault(smallest, training)
        return training

    def judge(self, setup: _Setup, memory: Breakdown) -> tuple[Fit, int]:
        """Return whether ``setup``, with its ``memory``, runs with the largest context, the smallest, or neither.

        The margin assumes that the allocator gives nothing back. It is 0 if the recipe fits only because it does.
        """
        assert memory.device_total_range_bytes is not None
        margin = self.usable - memory.device_total_range_bytes[1]
        if margin >= 0:
            return "fits", margin
        training = self._training(setup)

        def runs(context_bytes: int) -> bool:
            return training.replay(setup.allocator, capacity=self.usable - context_bytes).out_of_memory is None

        if runs(self.context.most):
            return "fits", 0
        return "tight" if runs(self.context.least) else "does not fit", margin

    def device_total(self, setup: _Setup) -> int:
        """Return the device total with the largest context; more than the usable bytes if the allocator runs out.

        There is no replay if the tensors alone are too large, or if the upper end of the range is usable.
        """
        least = self._least(setup)
        if least > self.usable:
            return least
        if self._surely_fits(setup):
            return super().device_total(setup)
        replayed = self._replayed(setup)
        return self.usable + 1 if replayed.out_of_memory else replayed.reserved + self.context.most

    def largest(self, sized: Callable[[int], _Setup], most: int) -> int | None:
        """Return the largest number up to ``most`` whose setup fits; None if 1 does not.

        Between the numbers that fit by the range and those whose tensors alone are too large, replays decide. The first
        is that of the number that would fit if the allocator's surplus were the same share of the working bytes as it
        is for the recipe itself.
        """
        low = _largest(lambda number: self._surely_fits(sized(number)), most) or 0
        high = 1 + (_largest(lambda number: self._least(sized(number)) <= self.usable, most) or 0)
        tried = low + (_largest(lambda more: self._likely(sized(low + more)) <= self.usable, high - low - 1) or 1)
        distance = 1
        while high - low > 1:
            runs = self._replayed(sized(tried)).out_of_memory is None
            low, high = (tried, high) if runs else (low, tried)
            tried += distance if runs else -distance
            distance *= 2
            if not low < tried < high:
                tried = (low + high) // 2
        return low or None

    def _least(self, setup: _Setup) -> int:
        """Return the device total that the tensors alone need."""
        memory = estimate_memory(setup.resolved, compute_capability=self.device.compute_capability)
        return memory.peak_allocated_bytes + self.context.most

    def _likely(self, setup: _Setup) -> float:
        """Return the device total if the surplus is the same share of the working bytes as for the recipe itself."""
        components = estimate_memory(setup.resolved, compute_capability=self.device.compute_capability).components
        return self._least(setup) + self._surplus * working_bytes(components)

    def _surely_fits(self, setup: _Setup) -> bool:
        """Return whether the upper end of the range is usable. It is that of the default settings, with or without
        expandable segments."""
        return setup.allocator.keeps_to_range and super().device_total(setup) <= self.usable

    def _replayed(self, setup: _Setup) -> Replayed:
        return self._training(setup).replay(setup.allocator, capacity=self.usable - self.context.most)


def _smallest(resolved: ResolvedRecipe) -> Recipe:
    return resolved.replaced(batch_size=1, seq_len=1).recipe


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
    """Return the largest number from 1 to ``most`` that fits; None if 1 does not. It is a binary search: if a number
    fits, all smaller ones must fit."""
    if most < 1 or not fits(1):
        return None
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _differences(before: _Setup, after: _Setup) -> dict[str, Any]:
    """Return the changed settings, without those that did not apply before and now have their default."""
    old, new = before.recipe.settings(), after.recipe.settings()
    settings = {name: value for name, value in new.items() if name in old and value != old[name]}
    settings |= dict.fromkeys((name for name in old if name in OFF and name not in new), False)
    if after.allocator != before.allocator:
        settings[VARIABLES[0]] = after.allocator.text
    return settings
