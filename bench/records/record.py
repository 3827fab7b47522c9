"""Run records: one JSON file per run, with the recipe's measurement, estimate, environment and outcome."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import force_setattr

from lorabench.bench.records.atomic_writes import write_atomically
from lorabench.bench.records.measurement import Duration, Measurement
from lorabench.bench.records.rehearsal import Counted, Rehearsal
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.devices.device import Device, known_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.input_files import decode_json, read_input
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings, read_settings
from lorabench.estimator.memory.breakdown import Breakdown, Bytes
from lorabench.estimator.recipes.parameters import Count, ParameterCounts
from lorabench.estimator.recipes.recipe import Recipe, digest_of, make_recipe
from lorabench.estimator.speed.throughput import Throughput
from lorabench.estimator.typed_values import convert

SCHEMA_VERSION = 3
NESTED_SINCE = 3
"""The first schema that nests the settings of adapter and quantisation; earlier recipes were flat. Digests always use
the flat settings, so they are equal in all schemas."""
SUFFIX = ".record.json"
LARGEST_RECORD_BYTES = 64 * 2**20
"""Much more than a record of 100,000 steps."""
SNAPSHOT_SUFFIX = ".memory-snapshot.json.gz"
"""Suffix of the file beside a record with the allocator's history of one step, if requested."""

Outcome = Literal["ok", "oom", "error", "timeout", "skipped"]
Engine = Literal["lorabench", "trainer"]
"""The training loop: lorabench's own, or `transformers.Trainer`."""
Memory = Literal["device", "host", "killed"]
"""Which memory ran out: the GPU's; the host's, with an error; or the host's, and the kernel killed the process."""

Key = tuple[str, Engine, int]
"""(digest, engine, repeat): unique among the records of a folder."""


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """The device that a recipe ran on."""

    backend: Backend = field(name="kind")
    """JSON names it ``kind``, as in the records that users keep as baselines."""
    name: str
    """Name from the driver or the kernel, such as ``NVIDIA H200``."""
    memory_bytes: Bytes
    """Total memory."""

    @property
    def catalogued(self) -> Device | None:
        """The GPU in the catalogue; None for a CPU, or a GPU that is not in the catalogue."""
        return None if self.backend == "cpu" else known_device(self.name)

    @property
    def multiprocessors(self) -> int | None:
        """The GPU's number of multiprocessors; None if the catalogue does not know it."""
        return None if self.catalogued is None else self.catalogued.multiprocessors

    compute_capability: Annotated[str, Meta(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")] | None = None
    """As torch reports it, such as ``9.0``; in older records from the catalogue, and None if that lacks the GPU."""

    def allocator_settings(self, text: str | None) -> AllocatorSettings:
        """Return the settings of torch's allocator from their ``text``; on a CPU, which has none, the defaults.

        Raises:
            UserError: torch would not accept them, or they cannot be replayed.
        """
        return read_settings(text).on(self.memory_bytes) if text and self.backend == "cuda" else DEFAULTS

    def __post_init__(self) -> None:
        if self.compute_capability is None and self.catalogued is not None:
            force_setattr(self, "compute_capability", self.catalogued.compute_capability)


class Environment(Struct, frozen=True, kw_only=True):
    """What a measurement depends on besides the recipe, without anything that identifies a person or a host."""

    lorabench: str
    python: str
    operating_system: str
    packages: dict[str, str]
    """Package → version, for packages that the step uses."""
    cpu_threads: Count
    cuda: str | None = None
    driver: str | None = None
    allocator: str | None = None
    """Settings of torch's allocator (`allocator_settings.VARIABLES`), if set."""
    commit: str | None = None
    """Commit of lorabench's own repository, if it runs from one; with ``+`` if files differ from it."""
    power_limit_watts: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    """Enforced power limit of the GPU."""
    highest_sm_clock_mhz: Count | None = None
    """Maximum SM clock of the GPU. The measurement has the actual clocks."""
    highest_memory_clock_mhz: Count | None = None

    def facts(self) -> dict[str, str | None]:
        """Return all facts as text: name of a fact or package → value; None if unknown."""
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
        """Return the names of the `facts` that differ in ``other``."""
        here, there = self.facts(), other.facts()
        return [name for name in here | there if here.get(name) != there.get(name)]


class Prediction(Struct, frozen=True, kw_only=True):
    """The estimate of the recipe for its device, made when it ran."""

    parameters: ParameterCounts
    memory: Breakdown
    speed: Throughput | None = None
    """None if the device's speed was unknown."""


class RunRecord(Struct, frozen=True, kw_only=True):
    """One run of one recipe."""

    schema_version: int = SCHEMA_VERSION
    digest: str
    """`Recipe.digest` of recipe and model_config. Equal digests mean the same work."""
    suite: str
    recipe: Recipe
    model_config: dict[str, Any]
    engine: Engine = "lorabench"
    repeat: Count = 0
    """Index of the run among the runs of this recipe, from 0. Each has its own seed."""
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    """Seed of random weights and dropout."""
    steps: Count | None = None
    """Requested timed steps; None if the record does not say (schema 1)."""
    warmup_steps: Count | None = None
    weights: Literal["random", "pretrained"] = "random"
    weights_digest: str | None = None
    """First 12 hex digits of the SHA-256 over the SHA-256s of the folder's ``*.safetensors``, by name. None for random
    weights, for the hub's weights, and if the record does not say."""
    dataset: str | None = None
    """Name of the text file, without its folder; None for Python's own text."""
    dataset_digest: str | None = None
    """First 12 hex digits of the text file's SHA-256."""
    started_at: str
    """UTC, ISO 8601."""
    seconds: Duration | None = None
    """From the request for a worker to its answer; None if the record does not say. Minus the sum of the measurement's
    ``stage_seconds``, it is the start time of the process."""
    device: DeviceFacts
    environment: Environment
    outcome: Outcome
    out_of: Memory | None = None
    """Which memory ran out, if the outcome is oom; None if the record does not say (schema 1)."""
    message: str | None = None
    """One line: why the outcome is not ok, or a remark."""
    traceback: str | None = None
    prediction: Prediction | None = None
    measurement: Measurement | None = None
    """None for a rehearsal, and unless the outcome is ok."""
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
        """Unique key among the records of a folder."""
        return self.digest, self.engine, self.repeat

    @property
    def file_name(self) -> str:
        """Name of the record's file."""
        return file_stem(self.key) + SUFFIX


def file_stem(key: Key) -> str:
    """Return the stem of a run's file names: the digest, plus engine and repeat unless they are the default."""
    digest, engine, repeat = key
    return digest + ("" if engine == "lorabench" else f".{engine}") + (f".repeat-{repeat}" if repeat else "")


class BrokenRecordError(UserError):
    """A file is named like a record, but is not a valid one."""


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write ``record`` into ``folder`` atomically, and return its path.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    path = folder / record.file_name
    try:
        write_atomically(path, encode_record(record))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and continue with --resume" if full else "name another folder with -o"
        raise UserError(f"{path}: cannot write the record: {error.strerror}: {remedy}") from error
    return path


def encode_record(record: RunRecord) -> bytes:
    """Return the contents of the record's file."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def read_record(path: Path) -> RunRecord:
    """Return the record in the file ``path``. A record of an older schema is converted.

    Raises:
        BrokenRecordError: the file is not a lorabench record, or was edited.
        UserError: the file cannot be read, or has a schema newer than this one.
    """
    try:
        raw = read_input(path, "a run record", LARGEST_RECORD_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read the record: {error.strerror}: make it readable or remove it") from error
    try:
        content = decode_json(raw)
        version = msgspec.convert(content, _Versioned).schema_version
    except (msgspec.ValidationError, ValueError) as error:
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
    # A version with fewer settings digested only those, which are the ones in the file.
    as_written = digest if version >= NESTED_SINCE else digest_of(content["recipe"], record.model_config)
    if record.digest != as_written:
        raise BrokenRecordError(f"{path}: its digest does not match its recipe, so it was edited: run the recipe again")
    fault = _contradiction(record)
    if fault is not None:
        raise BrokenRecordError(f"{path}: {fault}: run the recipe again")
    return msgspec.structs.replace(record, digest=digest)


def _contradiction(record: RunRecord) -> str | None:
    """Return why the record's parts contradict each other; None if they do not."""
    if record.rehearsed and (record.measurement is not None or record.seconds is not None):
        return "it was rehearsed, but it has times of a measurement"
    if not record.rehearsed and record.rehearsal is not None:
        return "it was measured, but it has a rehearsal"
    if record.outcome != "ok":
        return None
    if record.rehearsed:
        return None if record.rehearsal is not None else "its outcome is ok, but it has no rehearsal"
    if record.measurement is None or not record.measurement.step_seconds:
        return "its outcome is ok, but it has no measurement"
    return None


def _migrated(content: dict[str, Any], version: int) -> dict[str, Any]:
    """Return a record's content in this schema.

    Raises:
        UserError: a flat recipe is impossible.
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
        # The only kind of memory that schema 1 distinguished.
        content["out_of"] = "killed"
    return content


def read_records(folder: Path) -> list[RunRecord]:
    """Return all records in ``folder``, sorted by file name.

    Raises:
        UserError: the folder is missing or has no record, or `read_record` refuses a record.
    """
    try:
        fault = None if folder.is_dir() else "not a folder" if folder.exists() else "no such folder"
    except OSError as error:
        fault = error.strerror
    if fault:
        raise UserError(f"{folder}: {fault}: name the folder that `lorabench run -o` wrote")
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise UserError(f"{folder}: no run records (*{SUFFIX}) here: name the folder that `lorabench run -o` wrote")
    return [read_record(path) for path in paths]


class _Versioned(Struct):
    schema_version: int
