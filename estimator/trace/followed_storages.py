"""Follow the storage of each tensor of a step, from the operation that makes it until nothing refers to it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lorabench.estimator.trace.model_tensors import tensors_in
from lorabench.estimator.trace.storage_history import StorageHistory
from lorabench.estimator.trace.watched_operations import references_of_a_gathered_gradient, sharers, use_count
from lorabench.estimator.training.model import Recomputation

if TYPE_CHECKING:
    import torch


class FollowedStorages(StorageHistory):
    """Follows storages on some device types by weak reference, and records their history."""

    def __init__(
        self, device_types: tuple[str, ...], on_birth: Callable[[int, torch.Tensor, Any], None] | None = None
    ) -> None:
        super().__init__()
        self.device_types = device_types
        self._on_birth = on_birth
        self._sids: dict[int, int] = {}
        """id of a live storage → its number here; Python keeps one object for each storage while it lives."""
        self._references: dict[int, weakref.ref[Any]] = {}
        self._recomputing = False
        self._in_head = False
        """Whether the head or its backward runs: their tensors of `_width` are logits."""
        self._width = 0

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
        for tensor in (result,) if isinstance(result, torch.Tensor) else tensors_in((result,)):
            known = len(self._sizes)
            sid = self._follow(tensor, operation)
            if sid is None:
                continue
            if sid < known:
                continue
            if self._recomputing:
                self._recomputed[sid] = len(self._recompute_ends) - 1
            if self._in_head and tensor.dim() > 1 and tensor.shape[-1] == self._width:
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
            # It was resized in place, which frees one storage and makes another.
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
        """Give ``total`` the storage of ``zeros``: without a dispatch mode, autograd adds to them in place.

        The gradient of ``x[index]`` is added to zeros in place (`index_backward` of torch's FunctionsManual.cpp). Under
        a dispatch mode such as this ledger's it is added out of place.
        """
        sid = self._sids.get(id(zeros.untyped_storage()))
        if sid is not None:
            self._take_over(sid, zeros, total)

    def _accumulate(self, gathered: torch.Tensor, total: torch.Tensor) -> None:
        """Give ``total`` the storage of ``gathered`` if autograd adds to it in place without a dispatch mode.

        If a tensor gets two gradients, autograd adds the second to the first in place, unless something else refers to
        the first (torch/csrc/autograd/input_buffer.cpp). It never does so under a dispatch mode, nor on meta.
        """
        storage = gathered.untyped_storage()
        sid = self._sids.get(id(storage))
        if (
            sid is None
            or sharers(storage) != 1
            or gathered._is_view()
            or use_count(gathered) != references_of_a_gathered_gradient()
            or gathered.numel() * gathered.element_size() != storage.nbytes()
            or (total.shape, total.dtype) != (gathered.shape, gathered.dtype)
        ):
            return
        self._take_over(sid, gathered, total)

    def _take_over(self, sid: int, former: torch.Tensor, total: torch.Tensor) -> None:
        """Give the storage of ``total`` the number ``sid``, which the storage of ``former`` had."""
        key = id(former.untyped_storage())
        del self._sids[key], self._references[key]
        taker = total.untyped_storage()
        key = id(taker)
        self._sids[key] = sid
        self._references[key] = weakref.ref(taker, lambda _: self._forget(key))
