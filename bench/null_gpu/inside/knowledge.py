"""Which tensors on the null GPU hold what a real GPU would hold there."""

from __future__ import annotations

import torch


class Knowledge:
    """Remembers storages by address. Whatever is not remembered is not known.

    An address that the allocator gives to another tensor is forgotten when that tensor is first written to, since
    every operation either learns or forgets what it writes.
    """

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        """Address → bytes."""

    def knows(self, tensor: torch.Tensor) -> bool:
        """Tell whether the bytes of ``tensor`` are what a real GPU would have there."""
        if tensor.device.type != "cuda":
            return True
        storage = tensor.untyped_storage()
        return self._known.get(storage.data_ptr()) == storage.nbytes()

    def learn(self, tensor: torch.Tensor) -> None:
        """Note that it is known."""
        if tensor.device.type == "cuda":
            storage = tensor.untyped_storage()
            self._known[storage.data_ptr()] = storage.nbytes()

    def forget(self, tensor: torch.Tensor) -> None:
        """Note that it is not known."""
        if self._known and tensor.device.type == "cuda":
            self._known.pop(tensor.untyped_storage().data_ptr(), None)


def covers(tensor: torch.Tensor) -> bool:
    """Tell whether ``tensor`` is all of its storage, so that writing it leaves nothing of what was there before."""
    return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
