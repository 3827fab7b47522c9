from __future__ import annotations

import csv
import io
import json

from click.testing import CliRunner

from lorabench.cli.gpus import command
from lorabench.estimator.devices.device import device_names, find_device


def output(*arguments: str) -> str:
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    return ran.stdout


def test_the_table_lists_every_gpu_whole_within_80_columns() -> None:
    table, _, caption = output().partition("\n\n")
    lines = table.splitlines()
    assert lines[0].split() == ["gpu", "GiB", "GB/s", "fp32", "tf32", "bf16", "fp16", "arch", "watts"]
    assert [line.split()[0] for line in lines[1:]] == device_names()
    assert max(map(len, output().splitlines())) <= 80
    assert "t4 15.0 320 8.1 – – 65.0 7.5 70" in [" ".join(line.split()) for line in lines]
    assert "a process can use all but 0.75 GiB" in caption
    assert "without sparsity" in caption


def test_json_has_what_the_catalogue_has() -> None:
    gpus = json.loads(output("--format", "json"))
    assert [gpu["name"] for gpu in gpus] == device_names()
    for gpu in gpus:
        device = find_device(gpu["name"])
        assert gpu["memory_bytes"] == device.memory_bytes
        assert gpu["memory_bytes"] - gpu["usable_bytes"] == 768 * 2**20
        assert gpu["peak_flops_per_second"] == device.peak_flops_per_second
        assert gpu["sources"].keys() == {"rates", "units", "memory"}


def test_csv_leaves_empty_what_a_gpu_has_not() -> None:
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(output("--format", "csv")))}
    assert list(rows) == device_names()
    assert rows["t4"]["bfloat16_flops_per_second"] == ""
    assert float(rows["t4"]["float16_flops_per_second"]) == 65e12


def test_markdown_is_a_table() -> None:
    lines = output("--format", "markdown").splitlines()
    assert len(lines) == 2 + len(device_names())
    assert lines[2].startswith("| rtx-2080-ti | 11.0 | 616 |")
