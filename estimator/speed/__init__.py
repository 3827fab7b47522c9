"""How long a step takes: its operations counted on sizes, each bounded by arithmetic, memory and launches.

- `operations`: what a step runs, from the same walk through the model as the closed form of memory;
- `flops`: the arithmetic of a step, needed (MFU) and done (HFU);
- `optimizer_steps`: the bytes that each optimizer passes over;
- `rates`: how fast a device is, from its datasheet as a range, or as calibrated;
- `calibrations`: files of measured rates;
- `timing`: seconds of each group of operations;
- `throughput`: tokens per second, MFU, energy, duration and cost;
- `grid`: throughput for arrays of batch sizes, lengths and ranks.
"""
