"""Run records: one recipe's measurement with its estimate, environment and outcome, one JSON file each."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.rehearsal import Counted, Rehearsal
from lorabench.bench.records.whole_files import write_whole
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.devices.device import Device, known_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.recipe import Recipe, digest_of, make_recipe
from lorabench.estimator.speed.throughput import Throughput
from lorabench.estimator.typed_values import convert

SCHEMA_VERSION = 3
NESTED_SINCE = 3
"""The first schema in which adapter and quantisation have settings of their own; before it a recipe was flat. Digests
are of flat settings in every schema, so that they are the same."""
SUFFIX = ".record.json"
SNAPSHOT_SUFFIX = ".memory-snapshot.json.gz"
"""Of the file beside a record in which CUDA's allocator tells what it did over one step, where that was asked for."""

Outcome = Literal["ok", "oom", "error", "timeout", "skipped"]
Engine = Literal["lorabench", "trainer"]
"""Whose loop trains: lorabench's own, or `transformers.Trainer`."""
Memory = Literal["device", "host", "killed"]
"""Which memory ran out: the GPU's; the host's, as the process was told; or the host's, so that the kernel killed it."""

Key = tuple[str, Engine, int]
"""Digest, engine and repeat: what one record of a folder is found by."""


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """The device that a recipe ran on."""

    kind: Backend
    name: str
    """As the driver or the kernel names it, such as ``NVIDIA H200``."""
    memory_bytes: int
    """All of its memory."""

    @property
    def catalogued(self) -> Device | None:
        """The GPU of the catalogue that it is; None of a CPU, and of a GPU that is not in the catalogue."""
        return None if self.kind == "cpu" else known_device(self.name)

    @property
    def compute_capability(self) -> str | None:
        """Of `catalogued`, whose kernels' workspaces depend on it; None where that is None."""
        device = self.catalogued
        return None if device is None else device.compute_capability


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
    commit: str | None = None
    """Of lorabench's own repository, where it runs from one; with ``+`` where files there differ from it."""
    power_limit_watts: float | None = None
    """What the GPU is held to."""
    highest_sm_clock_mhz: int | None = None
    """Of the GPU's processors; what they ran at is in the measurement."""
    highest_memory_clock_mhz: int | None = None

    def facts(self) -> dict[str, str | None]:
        """Return all of it as people read it: the name of a fact or package → what it is, None where not known."""
        return {
            "lorabench": self.lorabench,
            "lorabench's commit": self.commit,
            "Python": self.python,
            "operating system": self.operating_system,
            "CUDA": self.cuda,
            "driver": self.driver,
            "allocator": self.allocator,
            "CPU threads": str(self.cpu_threads),
            "power limit": None if self.power_limit_watts is None else f"{self.power_limit_watts:g} W",
            "highest SM clock": None if self.highest_sm_clock_mhz is None else f"{self.highest_sm_clock_mhz} MHz",
            "highest memory clock": (
                None if self.highest_memory_clock_mhz is None else f"{self.highest_memory_clock_mhz} MHz"
            ),
            **dict(sorted(self.packages.items())),
        }

    def differences(self, other: Environment) -> list[str]:
        """Return the names of those of the `facts` that are others in ``other``."""
        here, there = self.facts(), other.facts()
        return [name for name in here | there if here.get(name) != there.get(name)]


class Prediction(Struct, frozen=True, kw_only=True):
    """The estimate of the recipe for the device that it ran on, as it stood when it ran."""

    parameters: ParameterCounts
    memory: Breakdown
    speed: Throughput | None = None
    """None where the device's rates were not known."""


class RunRecord(Struct, frozen=True, kw_only=True):
    """One recipe, run once."""

    schema_version: int = SCHEMA_VERSION
    digest: str
    """`Recipe.digest` of recipe and model_config: equal digests are the same work."""
    suite: str
    recipe: Recipe
    model_config: dict[str, Any]
    engine: Engine = "lorabench"
    repeat: Annotated[int, Meta(ge=0)] = 0
    """From 0: which of the runs of this recipe it is, each with a seed of its own."""
    seed: int = 0
    """Of random weights and of dropout."""
    steps: int | None = None
    """Timed steps that were asked for; None where the record does not say (schema 1)."""
    warmup_steps: int | None = None
    weights: Literal["random", "pretrained"] = "random"
    weights_digest: str | None = None
    """First 12 hex digits of the SHA-256 of those of the folder's ``*.safetensors``, by name; None for random weights,
    those of the hub, and where the record does not say."""
    dataset: str | None = None
    """Name of the text file, without its folder; None for the text that Python ships."""
    dataset_digest: str | None = None
    """First 12 hex digits of the text file's SHA-256."""
    started_at: str
    """UTC, ISO 8601."""
    seconds: Annotated[float, Meta(ge=0)] | None = None
    """From the request for a worker to its answer; None if the record does not say. What the measurement's
    ``stage_seconds`` leave of it is the start of the process."""
    device: DeviceFacts
    environment: Environment
    outcome: Outcome
    out_of: Memory | None = None
    """Which memory ran out, where the outcome is oom; None where the record does not say (schema 1)."""
    message: str | None = None
    """Why it is not ok, or what is worth knowing, in one line."""
    traceback: str | None = None
    prediction: Prediction | None = None
    measurement: Measurement | None = None
    """None unless the outcome is ok, and of a rehearsal."""
    rehearsed: bool = False
    """Whether it ran on a null GPU. Then nothing in the record was measured."""
    rehearsal: Rehearsal | None = None
    """None unless it was rehearsed and the outcome is ok."""

    @property
    def counted(self) -> Counted | None:
        """The peaks that an allocator counted, on a real device or in a rehearsal."""
        return self.measurement or self.rehearsal

    @property
    def key(self) -> Key:
        """What tells it from the other records of a folder."""
        return self.digest, self.engine, self.repeat

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return file_stem(self.key) + SUFFIX


def file_stem(key: Key) -> str:
    """Return what the names of a run's files begin with: the digest, then engine and repeat where they are unusual."""
    digest, engine, repeat = key
    return digest + ("" if engine == "lorabench" else f".{engine}") + (f".repeat-{repeat}" if repeat else "")


class BrokenRecordError(UserError):
    """A file that is named as a record and holds none that can be relied on."""


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write ``record`` into ``folder`` whole or not at all, and return its path.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    path = folder / record.file_name
    text = msgspec.json.format(msgspec.json.encode(record), indent=1)
    try:
        write_whole(path, text + b"\n")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "free some and go on with --resume" if full else "name another folder with -o"
        raise UserError(f"{path}: cannot write the record: {error.strerror}: {mend}") from error
    return path


def read_record(path: Path) -> RunRecord:
    """Return the record in the file ``path``; one of an older schema is brought up to this one.

    Raises:
        BrokenRecordError: the file is no lorabench record, or was edited.
        UserError: the file cannot be read, or has a schema newer than this one.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the record: {error.strerror}: make it readable or remove it") from error
    try:
        version = msgspec.json.decode(raw, type=_Versioned).schema_version
        content = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenRecordError(
            f"{path}: not a lorabench run record ({error}): remove it, or run the recipe again"
        ) from error
    if not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{path}: record schema {version}, but this lorabench reads 1 to {SCHEMA_VERSION}: "
            "use the lorabench version that wrote it, or run the recipe again"
        )
    try:
        record = convert(_migrated(content, version), RunRecord)
    except UserError as error:
        raise BrokenRecordError(f"{path}: broken run record ({error}): remove it, or run the recipe again") from error
    digest = record.recipe.digest(record.model_config)
    # A version that had fewer settings digested fewer of them: those that are in the file.
    as_written = digest if version >= NESTED_SINCE else digest_of(content["recipe"], record.model_config)
    if record.digest != as_written:
        raise BrokenRecordError(f"{path}: its digest does not fit its recipe, so it was edited: run the recipe again")
    if record.outcome == "ok" and (record.measurement is None or not record.measurement.step_seconds):
        raise BrokenRecordError(f"{path}: says ok but holds no measurement: run the recipe again")
    return msgspec.structs.replace(record, digest=digest)


def _migrated(content: dict[str, Any], version: int) -> dict[str, Any]:
    """Return a record's content in this schema.

    Raises:
        UserError: a flat recipe that cannot be.
    """
    content = {**content, "schema_version": SCHEMA_VERSION}
    settings = content.get("recipe")
    if version < NESTED_SINCE and isinstance(settings, dict) and "model" in settings:
        content["recipe"] = msgspec.to_builtins(make_recipe(**settings))
    measurement = content.get("measurement")
    if version == 1 and isinstance(measurement, dict):
        for asked, done in (("steps", "step_seconds"), ("warmup_steps", "warmup_step_seconds")):
            if isinstance(measurement.get(done), list):
                content[asked] = len(measurement[done])
    if version == 1 and content.get("message") == "killed by the kernel, as it does when memory runs out":
        # The one cause that schema 1 told apart; it counted every other shortage alike.
        content["out_of"] = "killed"
    return content


def read_records(folder: Path) -> list[RunRecord]:
    """Return all records in ``folder``, sorted by file name.

    Raises:
        UserError: no such folder, no record in it, or a record that `read_record` refuses.
    """
    try:
        fault = None if folder.is_dir() else "not a folder" if folder.exists() else "no such folder"
    except OSError as error:
        fault = error.strerror
    if fault:
        raise UserError(f"{folder}: {fault}: name the folder that `lorabench run -o` wrote")
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise UserError(f"{folder}: holds no run records (*{SUFFIX}): name the folder that `lorabench run -o` wrote")
    return [read_record(path) for path in paths]


class _Versioned(Struct):
    schema_version: int
