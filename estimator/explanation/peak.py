"""The memory that changes within a step, tensor by tensor: activations, logits, temporaries, and each phase's peak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from lorabench.estimator.closed_form.autograd import ITEMSIZES
from lorabench.estimator.closed_form.itemised import GIVEN, Item, itemised_step
from lorabench.estimator.closed_form.ledger import PeakCandidate
from lorabench.estimator.closed_form.sizes import ONE, TOKENS, Monomial, R, Values
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.explanation.letters import Widths
from lorabench.estimator.explanation.lines import Line
from lorabench.estimator.explanation.tensor_names import tensor_name
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.persistent import persistent_bytes
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class _Group(NamedTuple):
    """The properties that tensors on one line share."""

    place: str
    what: str
    source: str
    features: int
    dtype: str
    monomial: Monomial


class Peak:
    """The step of one recipe, and the peak candidate at which ``memory`` peaks."""

    def __init__(
        self,
        resolved: ResolvedRecipe,
        backend: Backend,
        memory: Breakdown,
        compute_capability: str | None = None,
    ) -> None:
        self.resolved = resolved
        self.spec = resolved.spec
        self.recipe = resolved.recipe
        self.backend = backend
        self.compute_capability = compute_capability
        self.memory = memory
        self.widths = Widths(resolved.spec)
        self.values = Values(resolved)
        self.step = itemised_step(resolved, backend, compute_capability)
        self.persistent = persistent_bytes(resolved, backend, compute_capability)

    def at_peak(self, component: str, *, step_alone: bool = False) -> list[Line]:
        """Return the tensors of ``component`` that are alive at the peak; with ``step_alone`` without those that stay
        from step to step."""
        phase = self.memory.phase
        stays = Item(component, ONE, GIVEN, 0 if step_alone else self.persistent[phase][component])
        items = [item for item in self.step.items(self._candidate_of(phase)) if item.component == component]
        lines = self._lines([stays, *items] if stays.bytes else items)
        return sorted(lines, key=lambda line: -line.bytes)

    def one_layer(self) -> list[Line]:
        """Return the tensors that one layer saves for backward without checkpointing, in the order of its forward
        pass."""
        return self._lines(self._layer_activations)

    def layer_bytes_per_token(self) -> int:
        """Return the bytes that one layer saves for each token."""
        per_token = {TOKENS: 1, TOKENS * R: self.values[R]}
        return sum(item.bytes * per_token.get(item.monomial, 0) for item in self._layer_activations)

    @cached_property
    def _layer_activations(self) -> list[Item]:
        step = self.step
        if self.recipe.gradient_checkpointing:
            step = itemised_step(self.resolved.without_checkpointing(), self.backend, self.compute_capability)
        return [item for item in step.layer_items() if item.component == "activations"]

    def phases(self) -> Iterator[Line]:
        """Yield each phase's peak, as the sum of its components."""
        for phase, peak in self.memory.phase_peaks_bytes.items():
            index = self._candidate_of(phase)
            parts = {name.replace("_", " "): bytes_ for name, bytes_ in self._component_bytes(index).items() if bytes_}
            yield Line(
                phase,
                " + ".join(parts),
                " + ".join(f"{bytes_:,}" for bytes_ in parts.values()),
                peak,
                self._just_made(index),
            )

    def _component_bytes(self, index: int) -> dict[str, int]:
        """Return component → bytes at candidate ``index``, including persistent memory."""
        candidate = self.step.candidates[index]
        stays = self.persistent[candidate.phase]
        return {name: bytes_ + stays[name] for name, bytes_ in candidate.component_bytes(self.values).items()}

    def _just_made(self, index: int) -> str:
        latest = self.step.latest[index]
        if latest == GIVEN or self.step.candidates[index].phase in ("loaded", "adapted", "optimizer"):
            return "memory from outside forward and backward"
        item = next((item for item in self.step.items(index) if item.maker == latest), None)
        if item is None:
            return "as soon as backward begins"
        name = tensor_name(item, self.recipe)
        return f"last made: {name.module or name.place}, {name.what}"

    def _candidate_of(self, phase: str) -> int:
        """Return the first candidate of ``phase`` with the phase's peak. In the phase of the overall peak its
        components must match too."""
        wanted = self.memory.phase_peaks_bytes[phase] - sum(self.persistent[phase].values())
        decisive = phase == self.memory.phase
        for index, candidate in enumerate(self.step.candidates):
            if candidate.phase != phase or self._total(candidate) != wanted:
                continue
            if not decisive or self._component_bytes(index) == self.memory.components:
                return index
        raise AssertionError(f"no candidate of the step has the peak of {phase}")

    def _total(self, candidate: PeakCandidate) -> int:
        return sum(bytes_ * self.values[monomial] for monomial, bytes_ in candidate.total.items() if bytes_)

    def _lines(self, items: Iterable[Item]) -> list[Line]:
        """Return one line for all tensors that differ only in their module."""
        groups: Counter[_Group] = Counter()
        modules: dict[_Group, list[str]] = {}
        for item in items:
            name, maker = tensor_name(item, self.recipe), item.maker
            tensors = _Group(name.place, name.what, name.source, maker.features, maker.dtype, item.monomial)
            groups[tensors] += item.bytes
            named = modules.setdefault(tensors, [])
            if name.module and name.module not in named:
                named.append(name.module)
        lines = (self._line(tensors, modules[tensors], bytes_) for tensors, bytes_ in groups.items())
        return [line for line in lines if line.bytes]  # a monomial may be 0

    def _line(self, tensors: _Group, modules: list[str], bytes_: int) -> Line:
        """Return the line of tensors that take ``bytes_`` for each unit of their monomial."""
        count = self.values[tensors.monomial]
        factors = [(tensors.monomial.name, count)]
        if tensors.features:
            itemsize = ITEMSIZES[tensors.dtype]
            times, rest = divmod(bytes_, tensors.features * itemsize)
            assert not rest
            layers = self.spec.num_hidden_layers
            factors = [
                ("L" if times == layers else f"{times:,}", times),
                (self.widths.name(tensors.features), tensors.features),
                *factors,
                (f"{itemsize} B", itemsize),
            ]
        else:
            factors.append((f"{bytes_:,} B", bytes_))
        kept = [(symbol, value) for symbol, value in factors if symbol != "1"]
        return Line(
            f"{tensors.place}, {tensors.what}" + (f" ({', '.join(modules)})" if modules else ""),
            " · ".join(symbol for symbol, _ in kept),
            " · ".join(f"{value:,}" for _, value in kept),
            bytes_ * count,
            tensors.source,
        )
