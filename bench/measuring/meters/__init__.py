"""Meters: memory, time and energy of training, read from torch, the driver and the kernel.

- `meter`: the protocol of every meter;
- `cpu`: live storages and resident memory;
- `cuda`: the caching allocator's counters, CUDA events, and samples from the driver;
- `driver`: NVML, one function per fact;
- `allocator_history`: the allocator's history of one step, as timeline and snapshot;
- `counted_step`: an extra step whose storages are counted by component;
- `core_waits`: time that threads waited for a core;
- `resident_memory`: RAM of the process.
"""
