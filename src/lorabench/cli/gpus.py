"""`lorabench gpus`: list the GPUs known by name."""

from __future__ import annotations

import click

from lorabench.cli.listing import FORMATS, Column, as_csv, as_json, as_markdown, as_table
from lorabench.cli.output import show
from lorabench.cli.parameters import OneOf
from lorabench.estimator.devices.device import DRIVER_BYTES, Device
from lorabench.estimator.quantities import in_gib

EXAMPLES = """\
\b
Examples:
  lorabench gpus
  lorabench gpus --format json
"""
DTYPES = {"float32": "fp32", "tf32": "tf32", "bfloat16": "bf16", "float16": "fp16"}


@click.command("gpus", epilog=EXAMPLES)
@click.option("--format", "format_", type=OneOf(FORMATS), default="table", help="Output format. [table]")
def command(format_: str) -> None:
    """List the GPUs known by name.

    Memory is what the driver reports. Peaks are for dense matmuls with float32 accumulation, without sparsity. JSON and
    CSV add the memory that a process can use, and the source of each figure. For a GPU that is not listed, pass its
    memory size to --gpu, such as 24GB.
    """
    from lorabench.estimator.devices.device import all_devices

    devices = all_devices()
    if format_ == "json":
        show(as_json([_facts(device) for device in devices]))
    elif format_ == "csv":
        show(as_csv([_flat(device) for device in devices]))
    elif format_ == "markdown":
        show(as_markdown(_columns(devices)))
    else:
        show(as_table(_columns(devices)))
        show(f"\nGiB: as the driver reports; a process can use all but {in_gib(DRIVER_BYTES)}")
        show("fp32 to fp16: dense TFLOP/s with float32 accumulation, without sparsity")


def _facts(device: Device) -> dict[str, object]:
    import msgspec

    facts = msgspec.structs.asdict(device)
    del facts["assumptions"]  # they are about short names, and rows have full names
    return {**facts, "usable_bytes": device.usable_bytes}


def _flat(device: Device) -> dict[str, object]:
    return {
        "name": device.name,
        "title": device.title,
        "memory_bytes": device.memory_bytes,
        "usable_bytes": device.usable_bytes,
        "bandwidth_bytes_per_second": device.bandwidth_bytes_per_second,
        **{f"{dtype}_flops_per_second": device.peak_flops_per_second.get(dtype) for dtype in DTYPES},
        "compute_capability": device.compute_capability,
        "multiprocessors": device.multiprocessors,
        "cache_bytes": device.cache_bytes,
        "tdp_watts": device.tdp_watts,
        "supports_bfloat16": device.supports_bfloat16,
        "supports_flash_attention": device.supports_flash_attention,
        "supports_bitsandbytes": device.supports_bitsandbytes,
        "rates_source": device.sources["rates"],
        "units_source": device.sources["units"],
        "memory_source": device.sources["memory"],
    }


def _columns(devices: list[Device]) -> list[Column]:
    return [
        Column("gpu", [device.name for device in devices], right=False),
        Column("GiB", [f"{device.memory_bytes / 2**30:.1f}" for device in devices]),
        Column("GB/s", [f"{(device.bandwidth_bytes_per_second or 0) / 1e9:.0f}" for device in devices]),
        *(Column(short, [_tera(device, dtype) for device in devices]) for dtype, short in DTYPES.items()),
        Column("arch", [device.compute_capability or "" for device in devices]),
        Column("watts", [str(device.tdp_watts) for device in devices]),
    ]


def _tera(device: Device, dtype: str) -> str:
    peak = device.peak_flops_per_second.get(dtype)
    return "–" if peak is None else f"{peak / 1e12:.1f}"
