"""Which tensors on the null GPU hold the values that they would have on a real GPU."""

from __future__ import annotations

import torch


class Knowledge:
    """Remembers the addresses of known storages.

    Every operation either learns or forgets the tensors that it writes. So if the allocator gives an address to
    another tensor, the old entry disappears at the first write.
    """

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        """Address → bytes."""

    def knows(self, tensor: torch.Tensor) -> bool:
        """Return whether ``tensor`` has the values that it would have on a real GPU."""
        if tensor.device.type != "cuda":
            return True
        storage = tensor.untyped_storage()
        return self._known.get(storage.data_ptr()) == storage.nbytes()

    def learn(self, tensor: torch.Tensor) -> None:
        """Note that the values of ``tensor`` are known."""
        if tensor.device.type == "cuda":
            storage = tensor.untyped_storage()
            self._known[storage.data_ptr()] = storage.nbytes()

    def forget(self, tensor: torch.Tensor) -> None:
        """Note that the values of ``tensor`` are not known."""
        if self._known and tensor.device.type == "cuda":
            self._known.pop(tensor.untyped_storage().data_ptr(), None)


def covers(tensor: torch.Tensor) -> bool:
    """Return whether ``tensor`` covers its whole storage, so that writing it leaves no old bytes."""
    return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
