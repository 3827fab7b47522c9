"""Published peaks of real A100s, rehearsed with the library versions of that time: a table of docs/ground_truth.md.

Run with `python benchmarks/published/reproduce.py FOLDER`. It makes two environments in FOLDER, with this lorabench and
the versions of `transformers-4.48.txt` or `transformers-4.45.txt` (6 GB each, some minutes). It rehearses `train.py`
once for each published row that this software runs. A row takes about a minute. Runs under FSDP are rank 0 alone.
Results are kept in FOLDER, so that the same command again does only what is missing.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PUBLISHED = ROOT / "tests" / "estimator" / "ground_truth"
PAGE = ROOT / "docs" / "ground_truth.md"
BEGIN, END = "<!-- begin: benchmarks/published/reproduce.py -->", "<!-- end -->"
OF_LORABENCH = ["click", "msgspec", "packaging", "PyYAML", "rich", "pyelftools"]
"""What `lorabench rehearse` imports, without the new torch and transformers that lorabench[bench] would bring."""
SOFTWARE = {"a100_80gb": "transformers-4.48", "a100_80gb_liger": "transformers-4.45"}
"""Source of a published row → name of the file with its versions."""
FRAMEWORKS = {
    "none": "",
    "foak-fast-kernels": ", fused kernels",
    "foak-fast-kernels-liger": ", fused kernels and loss",
    "accelerated-peft-bnb": "",
    "accelerated-peft-bnb-foak": ", fused kernels",
    "accelerated-peft-bnb-foak-liger": ", fused kernels and loss",
    "baseline-peft-bnb": ", prepared by TRL",
}
"""Configurations of fms-acceleration that `train.py` has → what the table says of them."""
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "no",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_BACKWARD_PREFETCH": "BACKWARD_PRE",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_USE_ORIG_PARAMS": "true",
}
"""What `accelerate launch` made of the published runs' `accelerate.yaml`."""


class Run(NamedTuple):
    """One published row."""

    software: str
    model: str
    framework: str
    """Configuration of fms-acceleration."""
    lora: bool
    bf16: bool
    """Under autocast."""
    gpus: int
    batch_size: int
    """Of one GPU."""
    peak: int
    steady: int
    """Bytes that stay allocated after training."""

    @property
    def name(self) -> str:
        """A name for its files."""
        lora = "-lora" if self.lora else ""
        return f"{self.software}-{self.model.rsplit('/')[-1]}-{self.framework}{lora}-{self.gpus}x{self.batch_size}"

    @property
    def configuration(self) -> tuple[str, str, str, int]:
        """What the table says of it, besides the batch."""
        method = "qlora" if "bnb" in self.framework else "lora" if self.lora else "full"
        return (
            self.software.rsplit("-")[-1],
            self.model.rsplit("/")[-1],
            f"{method}{FRAMEWORKS[self.framework]}{', bf16 autocast' * (self.bf16 and method != 'qlora')}",
            self.gpus,
        )


def runs() -> Iterator[Run]:
    """Yield the published rows that `train.py` can run."""
    with (PUBLISHED / "a100_80gb_mistral_7b.csv").open() as file:
        for row in csv.DictReader(file):
            framework = {"": "none", "no": "accelerated-peft-bnb", "recast": "baseline-peft-bnb"}[row["prepare_kbit"]]
            yield Run(
                "transformers-4.48",
                row["model"],
                framework,
                row["method"] != "full",
                row["mixed_precision"] == "bf16",
                1,
                int(row["batch_size"]),
                int(row["peak_allocated_bytes"]),
                int(row["steady_allocated_bytes"]),
            )
    with (PUBLISHED / "a100_80gb_many.csv").open() as file:
        for row in csv.DictReader(file):
            published = row["mem_peak_torch_mem_alloc_in_bytes"]
            if row["source"] in SOFTWARE and row["framework_config"] in FRAMEWORKS and published:
                yield Run(
                    SOFTWARE[row["source"]],
                    row["model_name_or_path"],
                    row["framework_config"],
                    row["peft_method"] == "lora",
                    row["bf16"].lower() == "true",
                    int(row["num_gpus"]),
                    int(row["per_device_train_batch_size"]),
                    int(float(published)),
                    int(float(row["mem_torch_mem_alloc_in_bytes"])),
                )


def environment(folder: Path, software: str) -> Path:
    """Return the Python of the environment with ``software`` in ``folder``. Make the environment if it is not there."""
    folder /= software
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(HERE / f"{software}.txt"), *OF_LORABENCH], check=True)
        subprocess.run([*pip, "hatchling", "editables"], check=True)
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
        (folder / "ready").touch()
    return python


def rehearse(run: Run, python: Path) -> dict[str, int]:
    """Return the peak and the steady bytes of one run.

    Raises SystemExit, with the end of what the program printed, if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), "-m", "lorabench", "rehearse", "--gpu", "a100-sxm-80gb", "--steps", "0"]
        if run.gpus > 1:
            command += ["--gpus", str(run.gpus), "--rank", "0"]
        command += ["--", "python", str(HERE / "train.py"), folder, "--model", run.model]
        command += ["--framework", run.framework, "--batch-size", str(run.batch_size), *(["--lora"] * run.lora)]
        command += ["--bf16"] * run.bf16
        variables = (
            os.environ | (FSDP if run.gpus > 1 else {}) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        )
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    found = re.search(r"PUBLISHED (.*)", done.stderr)
    if found is None:
        raise SystemExit(f"{run.name} failed:\n{done.stderr[-4000:]}\n{done.stdout[-1000:]}")
    figures: dict[str, int] = json.loads(found[1])
    return figures


def table(results: Sequence[tuple[Run, dict[str, Any]]]) -> str:
    """Return the rows as Markdown: one line for the batch sizes of one configuration."""
    titles = ["transformers", "model", "method", "GPUs", "batch", "published peak", "difference", "published steady"]
    titles.append("its difference")
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|---:|---:|---:|---:|---:|---:|"]
    for (software, model, method, gpus), group in groupby(results, key=lambda result: result[0].configuration):
        rows = list(group)
        columns = [
            [str(run.batch_size) for run, _ in rows],
            [f"{run.peak:,}" for run, _ in rows],
            [f"{found['peak'] - run.peak:+,}" for run, found in rows],
            [f"{run.steady:,}" for run, _ in rows],
            [f"{found['steady'] - run.steady:+,}" for run, found in rows],
        ]
        cells = [software, model, method, str(gpus), *("<br>".join(column) for column in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table into its page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Rehearse what is missing, and write the table after each row."""
    if len(sys.argv) != 2:
        raise SystemExit("name one folder: python benchmarks/published/reproduce.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for run in runs():
        kept = folder / f"{run.name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(rehearse(run, environment(folder, run.software))))
        found = json.loads(kept.read_text())
        results.append((run, found))
        print(f"{run.name:80} {found['peak'] - run.peak:+13,} {found['steady'] - run.steady:+13,}", flush=True)
        write(table(results))


if __name__ == "__main__":
    main()
