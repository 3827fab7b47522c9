"""The time of a step: its operations, counted from sizes, each bounded by arithmetic, memory traffic and launches.

- `operations`: the operations of a step, from the closed form of memory;
- `flops`: the arithmetic that a step needs (MFU), and that it runs (HFU);
- `optimizer_steps`: the memory traffic of each optimizer;
- `rates`: the rates of a device, from its datasheet as a range, or calibrated;
- `calibrations`: files of measured rates;
- `timing`: seconds of each group of operations;
- `throughput`: tokens per second, MFU, energy, duration and cost;
- `grid`: throughput for arrays of batch sizes, lengths and ranks.
"""
