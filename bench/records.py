"""Run records: one recipe's measurement with its estimate, environment and outcome, one JSON file each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from lorabench.bench.whole_files import write_whole
from lorabench.estimator.breakdown import Breakdown, ParameterCounts
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes import Recipe

SCHEMA_VERSION = 1
SUFFIX = ".record.json"

Outcome = Literal["ok", "oom", "error", "timeout"]


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """The device that a recipe ran on."""

    kind: Literal["cuda", "cpu"]
    name: str
    """As the driver or the kernel names it, such as ``NVIDIA H200``."""
    memory_bytes: int
    """All of its memory."""


class Environment(Struct, frozen=True, kw_only=True):
    """What a figure depends on besides the recipe; nothing that names a person or a host."""

    lorabench: str
    python: str
    operating_system: str
    packages: dict[str, str]
    """Package → version, of those that the step runs through."""
    cpu_threads: int
    cuda: str | None = None
    driver: str | None = None
    allocator: str | None = None
    """PYTORCH_CUDA_ALLOC_CONF or its newer name, where set."""


class Prediction(Struct, frozen=True, kw_only=True):
    """The estimate of the recipe for the device that it ran on, as it stood when it ran."""

    parameters: ParameterCounts
    memory: Breakdown


class Measurement(Struct, frozen=True, kw_only=True):
    """What was measured while the recipe trained."""

    parameters: ParameterCounts
    """Counted on the model that was trained."""
    memory: Breakdown
    """Components as counted on live tensor storages in an untimed step; on CUDA the peaks are the allocator's own."""
    step_seconds: tuple[Annotated[float, Meta(gt=0)], ...]
    """Each timed step, in order."""
    warmup_step_seconds: tuple[float, ...]
    tokens_per_step: int
    losses: tuple[float | None, ...]
    """Loss of every step from the first, warm-up included; None stands for a loss that is not finite."""

    @property
    def tokens_per_second(self) -> float:
        """Throughput at the median timed step: robust against single slow steps, unlike the mean."""
        from statistics import median

        return self.tokens_per_step / median(self.step_seconds)


class RunRecord(Struct, frozen=True, kw_only=True):
    """One recipe, run once."""

    schema_version: int = SCHEMA_VERSION
    digest: str
    """`Recipe.digest` of recipe and model_config: equal digests are the same work."""
    suite: str
    recipe: Recipe
    model_config: dict[str, Any]
    seed: int = 0
    """Of random weights and of dropout."""
    weights: Literal["random", "pretrained"] = "random"
    dataset: str | None = None
    """Name of the text file, without its folder; None for the text that Python ships."""
    started_at: str
    """UTC, ISO 8601."""
    device: DeviceFacts
    environment: Environment
    outcome: Outcome
    message: str | None = None
    """Why it is not ok, in one line."""
    traceback: str | None = None
    prediction: Prediction | None = None
    measurement: Measurement | None = None
    """None unless the outcome is ok."""


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write ``record`` into ``folder`` whole or not at all, and return its path.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    path = folder / f"{record.digest}{SUFFIX}"
    text = msgspec.json.format(msgspec.json.encode(record), indent=1)
    try:
        write_whole(path, text + b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot write the record: {error.strerror}: name another folder with -o") from error
    return path


def read_record(path: Path) -> RunRecord:
    """Return the record in the file ``path``.

    Raises:
        UserError: the file cannot be read, is no lorabench record, or was written by a version with another schema.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the record: {error.strerror}") from error
    try:
        version = msgspec.json.decode(raw, type=_Versioned).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a lorabench run record ({error}): remove it, or run the recipe again") from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: record schema {version}, but this lorabench reads {SCHEMA_VERSION}: "
            "use the lorabench version that wrote it, or run the recipe again"
        )
    try:
        record = msgspec.json.decode(raw, type=RunRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: broken run record ({error}): remove it, or run the recipe again") from error
    if record.digest != record.recipe.digest(record.model_config):
        raise UserError(f"{path}: its digest does not fit its recipe, so it was edited: run the recipe again")
    if record.outcome == "ok" and (record.measurement is None or not record.measurement.step_seconds):
        raise UserError(f"{path}: says ok but holds no measurement: run the recipe again")
    return record


def read_records(folder: Path) -> list[RunRecord]:
    """Return all records in ``folder``, sorted by file name.

    Raises:
        UserError: no such folder, no record in it, or a record that `read_record` refuses.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name the folder that `lorabench run -o` wrote")
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise UserError(f"{folder}: holds no run records (*{SUFFIX}): name the folder that `lorabench run -o` wrote")
    return [read_record(path) for path in paths]


class _Versioned(Struct):
    schema_version: int
