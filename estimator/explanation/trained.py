"""Trained parameters and tensors by dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from lorabench.estimator.dtypes import DTYPES, ITEMSIZE
from lorabench.estimator.optimizers.tensors import TrainedTensors

Product = tuple[str, str, int]
"""Formula, values, bytes."""


class Trained:
    """The numbers of trained tensors and parameters, by dtype."""

    def __init__(self, tensors: Iterable[TrainedTensors]) -> None:
        self._parameters = Counter[str]()
        self._tensors = Counter[str]()
        for group in tensors:
            self._parameters[group.dtype] += group.elements * group.count
            self._tensors[group.dtype] += group.count

    def dtypes(self, dtypes: Collection[str] = DTYPES) -> str:
        """Return the dtypes of trained tensors that are in ``dtypes``, in words."""
        return " or ".join(self._present(dtypes))

    def parameters_bytes(self, dtypes: Collection[str] = DTYPES) -> Product:
        """Return the bytes of the parameters in ``dtypes``."""
        return self._product(
            "trainable parameters",
            [(self._parameters[dtype], ITEMSIZE[dtype], dtype) for dtype in self._present(dtypes)],
        )

    def tensors_bytes(self, itemsize: int | None, dtypes: Collection[str] = DTYPES) -> Product:
        """Return the bytes of one number per tensor in ``dtypes``, of ``itemsize`` bytes or in the tensor's dtype."""
        sizes = [(self._tensors[dtype], itemsize or ITEMSIZE[dtype], dtype) for dtype in self._present(dtypes)]
        if itemsize is not None and len(sizes) == len(self._tensors):
            sizes = [(sum(self._tensors.values()), itemsize, "")]
        return self._product("trainable tensors", sizes)

    def _present(self, dtypes: Collection[str]) -> list[str]:
        return [dtype for dtype in self._parameters if dtype in dtypes]

    def _product(self, what: str, sizes: list[tuple[int, int, str]]) -> Product:
        """Return the sum of counts times bytes. Dtypes are named if there are several."""
        named = len(self._parameters) > 1
        formula = " + ".join(
            f"{what}{f' in {dtype}' if named and dtype else ''} · {size} B" for _, size, dtype in sizes
        )
        values = " + ".join(f"{count:,} · {size}" for count, size, _ in sizes)
        return formula, values, sum(count * size for count, size, _ in sizes)
