"""The CUDA context: what a process holds on a GPU outside torch's allocator, for the driver and for loaded kernels.

It depends on the card and on its driver. nvidia-smi and NVML count it; torch does not.
"""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.quantities import MIB


class Context(NamedTuple):
    """The least and the most bytes that are published for a class of GPUs."""

    least: int
    most: int
    gpu: str
    source: str


MOST = 1127 * MIB
"""The largest figure that is published."""
PUBLISHED = {
    "7.5": Context(
        141 * MIB,
        141 * MIB,
        "T4",
        "fitcheck-llm 0.3.1, data/measurements: 140.875 MiB outside the allocator in each of 40 training steps",
    ),
    "8.6": Context(
        710 * MIB,
        710 * MIB,
        "RTX A6000",
        "vramcalc 0.1.2, benchmarks/results.jsonl: 710 MiB outside the allocator of torch 2.14.1, CUDA 13.0",
    ),
    "8.9": Context(
        426 * MIB,
        MOST,
        "RTX 6000 Ada",
        "unslothai/unsloth-zoo, pull request 1053: 426 MiB before any kernel, torch 2.10, CUDA 13.0; with kernels at "
        "most what is published of any GPU",
    ),
    "12.0": Context(614 * MIB, MOST, "RTX 5090", "published as 0.6 to 1.1 GiB, for several drivers that are not named"),
}
"""Compute capability → the context of its GPUs, as published for one of them."""
WHOLE = Context(
    min(context.least for context in PUBLISHED.values()),
    max(context.most for context in PUBLISHED.values()),
    "",
    "all published figures",
)
"""The context of a GPU for whose class nothing is published."""


def context_of(compute_capability: str | None) -> Context:
    """Return the context of GPUs of ``compute_capability``; None for an unknown GPU."""
    return PUBLISHED.get(compute_capability or "", WHOLE)
