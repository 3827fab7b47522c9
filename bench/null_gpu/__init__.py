"""A null GPU: the real CUDA libraries' callers, on a GPU that is not there.

torch's CUDA build, bitsandbytes and others link the CUDA runtime, cuBLAS, cuDNN and NCCL dynamically. A small library
takes the place of all of these in a process: memory is address space that is never touched, kernels and collectives
do nothing. What decides how much is allocated, when, and by which kernel's host code, is then the real thing: torch's
caching allocator, its choice of kernels, bitsandbytes, peft, transformers, accelerate, any training script.

It knows: every allocation and free, in order, on the device; which kernels are launched; whether memory runs out.
It cannot know: time, energy, the results of kernels (losses, gradients), what the driver itself takes (the context's
size), the workspace of cuDNN's plans, and how a physical card's memory is fragmented. None of these is ever reported.
"""

import os

NAME = "NULL_GPU_NAME"
"""Variable that holds the card's name; set in every process that runs on a null GPU."""


def on_null_gpu() -> bool:
    """Return whether this process runs on a null GPU, whose kernels compute nothing."""
    return NAME in os.environ
