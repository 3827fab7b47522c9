"""The breakdown of memory that estimates, traces and measurements share."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

COMPONENTS: dict[str, str] = {
    "weights": "base weights that are not quantised",
    "quantized_weights": "4-bit codes and quantisation constants",
    "adapters": "adapter weights, and modules_to_save",
    "gradients": "gradients of trained weights",
    "optimizer_states": "kept by the optimizer between steps",
    "activations": "saved for the backward pass",
    "logits": "logits, float32 copy, log-softmax and gradients",
    "temporaries": "freed after a few operations",
    "buffers": "token ids, labels, rotary tables, model buffers",
    "workspaces": "cuBLAS workspaces, one per thread (two threads)",
    "rounding": "blocks of the allocator beyond their tensors",
}
"""Component → what it contains, in the order of display."""

PHASES: dict[str, str] = {
    "loaded": "base model loaded",
    "adapted": "before the first step: prepared, with adapters",
    "forward": "forward pass and loss",
    "backward": "backward pass, with recomputation under checkpointing",
    "optimizer": "optimizer step",
}
"""Phases of training, in order. The first two end before the first step."""


Bytes = Annotated[int, Meta(ge=0, le=2**60)]
"""The bound, an exbibyte, is far above any machine, and keeps sums and ratios within floats."""


class Breakdown(Struct, frozen=True, kw_only=True):
    """Bytes by component at the peak of a steady training step, and the peak of each phase."""

    components: dict[str, Bytes]
    """Name (of `COMPONENTS`) → bytes at the peak. They add up to ``peak_allocated_bytes``."""
    phase: str
    """The phase (of `PHASES`) of the peak."""
    peak_allocated_bytes: Bytes
    """Maximum of the tensors' bytes, as the device's allocator counts them."""
    phase_peaks_bytes: dict[str, Bytes]
    """Phase → maximum of the allocated bytes; for ``loaded`` and ``adapted`` the bytes that remain at the end."""
    peak_reserved_bytes: Bytes | None = None
    """Maximum of the bytes that the caching allocator takes from the device; None on a CPU, which has no such
    allocator."""
    device_total_bytes: Bytes | None = None
    """Reserved bytes plus the CUDA context: the process's memory in nvidia-smi. None on a CPU."""
    peak_reserved_range_bytes: tuple[Bytes, Bytes] | None = None
    """Estimates only: lowest and highest ``peak_reserved_bytes``, depending on fragmentation of the allocator's
    segments and on cuBLAS' workspaces (`reserved`)."""
    device_total_range_bytes: tuple[Bytes, Bytes] | None = None
    """Estimates only: the same for ``device_total_bytes``, which also depends on the CUDA context."""
    paged_states_bytes: Bytes = 0
    """Estimates only: optimizer states in unified memory. The driver keeps them on the GPU while it has room. NVML then
    counts them for the process; torch does not, and they never make memory run out."""
    allocator_settings: str = ""
    """Estimates only: the settings that the allocator was replayed with, as in PYTORCH_ALLOC_CONF; "" for the defaults
    and without a replay."""

    @property
    def peak_requested_bytes(self) -> int:
        """Maximum of the bytes that tensors request: the peak without the allocator's rounding."""
        return self.peak_allocated_bytes - self.components.get("rounding", 0)
