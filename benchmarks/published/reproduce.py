"""Published peaks of real A100s, rehearsed with the library versions of that time: a table of docs/ground_truth.md.

Run with `python benchmarks/published/reproduce.py FOLDER`. It makes an environment in FOLDER with `requirements.txt`
and this lorabench (6 GB, some minutes), and rehearses `train.py` once for each published row that this software runs.
A row takes about a minute. Runs under FSDP are rank 0 of two, alone. Results are kept in FOLDER, so that the same
command again does only what is missing.
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
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PUBLISHED = ROOT / "tests" / "estimator" / "ground_truth"
PAGE = ROOT / "docs" / "ground_truth.md"
BEGIN, END = "<!-- begin: benchmarks/published/reproduce.py -->", "<!-- end -->"
OF_LORABENCH = ["click", "msgspec", "packaging", "PyYAML", "rich", "pyelftools"]
"""What `lorabench rehearse` imports, without the new torch and transformers that lorabench[bench] would bring."""
FRAMEWORKS = {"none": "no", "accelerated-peft-bnb": "no", "baseline-peft-bnb": "recast"}
"""Configurations of fms-acceleration that change no kernels → how the quantised model was prepared."""
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

    model: str
    method: str
    prepare: str
    gpus: int
    batch_size: int
    """Of one GPU."""
    peak: int
    steady: int
    """Bytes that stay allocated after training."""

    @property
    def name(self) -> str:
        """A name for its files."""
        prepared = f"-{self.prepare}" if self.method == "qlora" else ""
        return f"{self.model.rsplit('/')[-1]}-{self.method}{prepared}-{self.gpus}x{self.batch_size}"


def runs() -> Iterator[Run]:
    """Yield the published rows that `train.py` can run."""
    with (PUBLISHED / "a100_80gb_mistral_7b.csv").open() as file:
        for row in csv.DictReader(file):
            bytes_ = int(row["peak_allocated_bytes"]), int(row["steady_allocated_bytes"])
            prepare = row["prepare_kbit"] or "no"
            yield Run(row["model"], row["method"], prepare, 1, int(row["batch_size"]), *bytes_)
    with (PUBLISHED / "a100_80gb_many.csv").open() as file:
        for row in csv.DictReader(file):
            framework, published = row["framework_config"], row["mem_peak_torch_mem_alloc_in_bytes"]
            if row["torch_dtype"] != "bfloat16" or framework not in FRAMEWORKS or not published:
                continue
            quantised = "bnb" in framework
            if quantised and int(row["num_gpus"]) > 1:
                continue  # FSDP shards quantised weights that were loaded on the host, which `train.py` does not do
            yield Run(
                row["model_name_or_path"],
                "qlora" if quantised else row["peft_method"] or "full",
                FRAMEWORKS[framework],
                int(row["num_gpus"]),
                int(row["per_device_train_batch_size"]),
                int(float(published)),
                int(float(row["mem_torch_mem_alloc_in_bytes"])),
            )


def environment(folder: Path) -> Path:
    """Return the Python of the environment in ``folder``, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt"), *OF_LORABENCH], check=True)
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
        command += ["--", "python", str(HERE / "train.py"), folder, "--model", run.model, "--method", run.method]
        command += ["--prepare", run.prepare, "--batch-size", str(run.batch_size)]
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
    """Return the rows as Markdown."""
    lines = [
        "| model | method | GPUs | batch | published peak | rehearsed | difference | published steady | difference |"
    ]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for run, found in results:
        method = f"{run.method}, recast" if run.prepare == "recast" else run.method
        cells = [run.model.rsplit("/")[-1], method, str(run.gpus), str(run.batch_size), f"{run.peak:,}"]
        cells += [f"{found['peak']:,}", f"{found['peak'] - run.peak:+,}", f"{run.steady:,}"]
        cells.append(f"{found['steady'] - run.steady:+,}")
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
    python = environment(folder / "venv")
    results = []
    for run in runs():
        kept = folder / f"{run.name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(rehearse(run, python)))
        found = json.loads(kept.read_text())
        results.append((run, found))
        print(f"{run.name:40} {found['peak'] - run.peak:+13,} {found['steady'] - run.steady:+13,}", flush=True)
        write(table(results))


if __name__ == "__main__":
    main()
