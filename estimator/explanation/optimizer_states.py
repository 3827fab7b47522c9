"""Optimizer states, term by term."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.explanation.lines import Line
from lorabench.estimator.explanation.trained import Trained
from lorabench.estimator.memory.optimizers import optimizer_bytes
from lorabench.estimator.optimizers.states import (
    MAP_BYTES,
    MIN_8BIT_ELEMENTS,
    MIN_PAGED_ELEMENTS,
    STATE_BLOCK,
    Blockwise,
    LikeWeights,
    RowsAndColumns,
    Scalars,
    State,
)
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.tensors import TrainedTensors


class OptimizerStates:
    """The states of an optimizer, a name of the table, for ``tensors``."""

    def __init__(self, optim: str, tensors: Sequence[TrainedTensors], backend: Backend) -> None:
        self.optim = optim
        self.optimizer = OPTIMIZERS[optim]
        self.library = self.optimizer.library.package
        self.tensors = tensors
        self.backend = backend
        self.trained = Trained(tensors)

    def lines(self) -> Iterator[Line]:
        """Yield the states on the device."""
        for state in self.optimizer.states:
            yield from self._lines(state)

    def _lines(self, state: State) -> Iterator[Line]:
        match state:
            case LikeWeights():
                yield from self._like_weights(state)
            case Scalars():
                yield from self._scalars(state)
            case RowsAndColumns():
                yield self._rows_and_columns(state)
            case Blockwise():
                yield from self._blockwise(state)

    def _like_weights(self, state: LikeWeights) -> Iterator[Line]:
        formula, values, bytes_ = self.trained.parameters_bytes(state.dtypes)
        if " + " in formula:
            formula, values = f"({formula})", f"({values})"
        if bytes_:
            yield Line(
                state.what,
                f"{state.each} · {formula}",
                f"{state.each} · {values}",
                state.each * bytes_,
                f"{self.library}: {self.optimizer.name} keeps them in the dtype of the weight, "
                f"{self.trained.dtypes(state.dtypes)}",
            )

    def _scalars(self, state: Scalars) -> Iterator[Line]:
        if self.backend in state.backends:
            formula, values, bytes_ = self.trained.tensors_bytes(state.itemsize, state.dtypes)
            if bytes_:
                yield Line(state.what, formula, values, bytes_, f"{self.library}: {state.why}")

    def _rows_and_columns(self, state: RowsAndColumns) -> Line:
        kept = state.kept(self.tensors, self.backend).allocated
        return Line(
            "rows and columns of second moments",
            "Σ (rows + columns) · 4 B",
            f"{kept // 4:,} · 4",
            kept,
            f"{self.library}: {self.optimizer.name} keeps a float32 row and column of each matrix",
        )

    def _blockwise(self, state: Blockwise) -> Iterator[Line]:
        coded = [group for group in self.tensors if state.coded(group)]
        whole = [group for group in self.tensors if not state.coded(group)]
        kept_from = MIN_PAGED_ELEMENTS if state.paged else float("inf")
        for name, itemsize, tensors in (("8-bit", 1, coded), ("float32", 4, whole)):
            elements = sum(group.elements * group.count for group in tensors if group.elements < kept_from)
            if elements:
                yield Line(
                    f"{name} states",
                    f"{state.each} · parameters · {itemsize} B",
                    f"{state.each} · {elements:,} · {itemsize}",
                    state.each * elements * itemsize,
                    f"bitsandbytes: 8 bits from {MIN_8BIT_ELEMENTS:,} elements a tensor on, float32 below; "
                    "transformers: float32 for embeddings"
                    if state.bits == 8
                    else "bitsandbytes: float32 states",
                )
        if coded:
            blocks = sum(group.count * -(-group.elements // STATE_BLOCK) for group in coded)
            yield Line(
                "absmax of the 8-bit states",
                f"{state.each} · parameters / {STATE_BLOCK} · 4 B",
                f"{state.each} · {blocks:,} · 4",
                state.each * blocks * 4,
                f"bitsandbytes: a float32 for each {STATE_BLOCK} states",
            )
            yield Line(
                "quantisation maps",
                f"{state.maps} · {MAP_BYTES:,} B",
                f"{state.maps} · {MAP_BYTES:,}",
                state.maps * MAP_BYTES,
                "bitsandbytes: 256 float32 for each kind of state",
            )

    def remark(self) -> str:
        """Return a remark about states that the lines do not show; empty if they show all."""
        if not self.optimizer.states:
            return f"{self.optimizer.name} keeps none."
        paged = optimizer_bytes(self.optim, self.tensors, self.backend).paged
        if not paged:
            return ""
        return (
            f"Another {paged:,} B are paged: bitsandbytes keeps them in unified memory, which torch's allocator does "
            "not count and which moves to the host if the device runs short."
        )
