"""Meters: what training takes of a device while it runs, read from torch, the driver and the kernel.

- `meter`: what every meter tells, whatever the device;
- `cpu`: live storages and resident memory;
- `cuda`: the caching allocator's counters, CUDA events, and what the driver says meanwhile;
- `driver`: NVIDIA's management library, one function for each fact;
- `allocator_history`: the allocator's own record of one step, as a timeline and as a snapshot;
- `counted_step`: one more step whose storages are counted by component;
- `core_waits`: how long the process waited for a core;
- `resident_memory`: what the process has in RAM.
"""
