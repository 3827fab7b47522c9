"""What an answer about memory looks like, the same for estimates, traces and measurements."""

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
"""Components of a breakdown, in the order in which people read them, each with what it holds."""

PHASES: dict[str, str] = {
    "loaded": "base model loaded",
    "adapted": "before the first step: prepared, with adapters",
    "forward": "forward pass and loss",
    "backward": "backward pass, with recomputation under checkpointing",
    "optimizer": "optimizer step",
}
"""Phases of a training, in order; the first two are what is held before its first step."""


Bytes = Annotated[int, Meta(ge=0)]


class Breakdown(Struct, frozen=True, kw_only=True):
    """Bytes by component at the moment of the peak, and the peak of each phase, of a steady training step."""

    components: dict[str, Bytes]
    """Name (of `COMPONENTS`) → bytes at the peak; they add up to ``peak_allocated_bytes``."""
    phase: str
    """The phase (of `PHASES`) in which the peak falls."""
    peak_allocated_bytes: Bytes
    """Most bytes that tensors take at once, as the device's allocator counts them."""
    phase_peaks_bytes: dict[str, Bytes]
    """Phase → most bytes allocated in it; of ``loaded`` and ``adapted``, what stays when that is done."""
    peak_reserved_bytes: Bytes | None = None
    """Most bytes that the caching allocator takes from the device; None where there is no such allocator (CPU)."""
    device_total_bytes: Bytes | None = None
    """Reserved bytes with the CUDA context: what nvidia-smi shows for the process. None on CPU."""
    peak_reserved_range_bytes: tuple[int, int] | None = None
    """Of an estimate, the least and the most that ``peak_reserved_bytes`` may turn out to be, by how the allocator's
    segments fragment and what cuBLAS works in (`reserved`)."""
    device_total_range_bytes: tuple[int, int] | None = None
    """Of an estimate, the same of ``device_total_bytes``, by the context besides."""
