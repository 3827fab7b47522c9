"""A null GPU: a simulated GPU for unchanged CUDA programs.

torch's CUDA build, bitsandbytes and others link the CUDA runtime, cuBLAS, cuDNN and NCCL dynamically. A small library
replaces all of these in a process: memory is address space that is never touched; kernels and collectives do nothing.
Everything that decides how much is allocated, and when, is real: torch's caching allocator, its choice of kernels,
bitsandbytes, peft, transformers, accelerate, and any training script.

It knows every allocation and free on the device, in order; which kernels are launched; and whether memory runs out.
It cannot know time, energy, or the results of kernels (losses, gradients). Nor can it know the memory of the driver
itself (the context), the workspaces of cuDNN's plans, or how a physical card's memory is fragmented. It never reports
any of these.
"""

import os

NAME = "NULL_GPU_NAME"
"""Variable that holds the card's name; set in every process that runs on a null GPU."""


def on_null_gpu() -> bool:
    """Return whether this process runs on a null GPU, whose kernels compute nothing."""
    return NAME in os.environ
