"""GPUs from a catalogue, with memory, bandwidth and dense peak rates; or GPUs with a known memory size only."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from lorabench.estimator.devices.local_gpu import first_local_gpu
from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.quantities import GIB, in_gib

CATALOGUE = Path(__file__).parent / "gpus.json"
GENERIC_WORDS = {"nvidia", "geforce", "tesla", "amd", "instinct", "radeon", "graphics", "generation", "gpu", "edition"}
"""Words in drivers' names that do not distinguish GPUs."""
DISTINCTIVE_WORDS = {"ti", "super", "ada", "pro"}
"""Distinctive words of a GPU. A name without them means another GPU: an RTX 4070 is not an RTX 4070 Ti SUPER, and an
RTX 4000 is not an RTX 4000 Ada."""
SIZE = r"(?P<number>[-+]?\d+(?:\.\d+)?)\s*(?P<unit>g|gb|gib)?"
MISSPELT_SIZE = r"[-+]?(?:[\d.,_]|e[-+]?\d)*(?:nan|inf)?\s*(?:[kmgtp]?i?bs?|[kmgtp]|[a-z]*bytes?)?"
"""A misspelt size: a number, a unit or both. No GPU has such a name."""
LOCAL = "local"
"""The name for this machine's own GPU."""
DRIVER_BYTES = 768 * 2**20
"""Memory that the driver reports but keeps for itself. torch's out-of-memory messages show the rest: 14.75 of 15 GiB on
a T4, 23.6 of 24 on an RTX 4090, 39.5 of 40 and 79.25 of 80 on A100s. This is the largest of these differences."""
LARGEST_SIZE_GIB = 100_000
LARGEST_BARE_SIZE_GIB = 512
"""A larger number without a unit is a model number, such as 1080."""


class Device(Struct, frozen=True, kw_only=True):
    """One GPU as a program sees it. A card with two dies counts as two GPUs."""

    name: str
    """Short name, such as ``rtx-4090``; if only the memory is known, the size as written."""
    title: str
    """The vendor's name."""
    memory_bytes: int
    """Total memory, as the driver reports it."""
    bandwidth_bytes_per_second: float | None = None
    peak_flops_per_second: dict[str, float] = {}
    """float32, tf32, bfloat16, float16 → dense peak of matmuls that accumulate in float32, never with sparsity. A dtype
    without hardware units is absent."""
    compute_capability: str | None = None
    """CUDA compute capability, such as ``8.9``, or AMD's target, such as ``gfx942``."""
    multiprocessors: int | None = None
    """Streaming multiprocessors, or AMD's compute units. The tiles of a matmul are distributed over them."""
    cache_bytes: int | None = None
    """The last cache that all multiprocessors share: L2, or AMD's Infinity Cache. None if unknown."""
    tdp_watts: int | None = None
    """Board power; half of the card's if it has two dies."""
    supports_bfloat16: bool | None = None
    """Whether the matrix units support bfloat16. If not, PyTorch emulates it slowly."""
    supports_flash_attention: bool | None = None
    """Whether the flash-attn 2 package runs on it: compute capability 8.0 or newer, or AMD CDNA 2 or newer."""
    supports_bitsandbytes: bool | None = None
    """Whether bitsandbytes' 4-bit kernels run on it: compute capability 6.0 or newer, or AMD CDNA 2 or newer."""
    sources: dict[str, str] = {}
    """rates, units (multiprocessors and cache), memory → source of the figures."""
    assumptions: tuple[str, ...] = ()
    """How an ambiguous name was resolved, one line each; empty for a unique name."""

    @property
    def usable_bytes(self) -> int:
        """Memory that a process can use: all but the driver's share."""
        return self.memory_bytes - DRIVER_BYTES


class _Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU of the catalogue file, in the units of datasheets."""

    name: str
    title: str
    memory_gb: int
    """The advertised size."""
    memory_mib: int
    bandwidth_gb_per_second: float
    dense_tflops: dict[str, float]
    compute_capability: str
    multiprocessors: int
    cache_mib: float | None = None
    tdp_watts: int
    rates_source: str
    units_source: str
    """Source of multiprocessors and cache."""
    memory_source: str
    other_words: tuple[str, ...] = ()
    """Words that the driver adds to the name."""
    usual: bool = False
    """Whether people mean this GPU by an ambiguous name. Cloud servers with eight GPUs have the SXM form."""

    def device(self) -> Device:
        return Device(
            name=self.name,
            title=self.title,
            memory_bytes=self.memory_mib * 2**20,
            bandwidth_bytes_per_second=self.bandwidth_gb_per_second * 1e9,
            peak_flops_per_second={dtype: tera * 1e12 for dtype, tera in self.dense_tflops.items()},
            compute_capability=self.compute_capability,
            multiprocessors=self.multiprocessors,
            cache_bytes=None if self.cache_mib is None else int(self.cache_mib * 2**20),
            tdp_watts=self.tdp_watts,
            supports_bfloat16="bfloat16" in self.dense_tflops,
            supports_flash_attention=self._at_least(8.0),
            supports_bitsandbytes=self._at_least(6.0),
            sources={"rates": self.rates_source, "units": self.units_source, "memory": self.memory_source},
        )

    def _at_least(self, least: float) -> bool:
        return self.compute_capability.startswith("gfx9") or float(self.compute_capability) >= least

    def words(self) -> set[str]:
        return {*self.name.split("-"), f"{self.memory_gb}gb", *self.other_words}

    def compact_names(self) -> set[str]:
        name = self.name.replace("-", "")
        return {name, name.removeprefix("rtx"), "".join(_words(self.title))}


@cache
def _catalogue() -> tuple[_Entry, ...]:
    return msgspec.json.decode(CATALOGUE.read_bytes(), type=tuple[_Entry, ...])


def device_names() -> list[str]:
    """Return the names of the catalogue's GPUs in its order: by vendor, line and generation."""
    return [entry.name for entry in _catalogue()]


def all_devices() -> list[Device]:
    """Return the GPUs of the catalogue, in its order."""
    return [entry.device() for entry in _catalogue()]


def find_device(text: str | float) -> Device:
    """Return the GPU that ``text`` names, or a GPU with a known memory size only.

    ``text`` is one of these:

    - a catalogue name or a part of it (``4090``, ``a100 80gb sxm``), or the driver's name (``NVIDIA A100-SXM4-80GB``),
      in any case, with spaces, hyphens or underscores;
    - a memory size: ``24``, ``24GB``, ``24GiB`` and ``24G`` all mean 24 · 2³⁰ bytes, as GPU vendors count;
    - ``local``: this machine's own GPU.

    If a name fits several GPUs and the catalogue says which one people mean, that one is returned, and its
    ``assumptions`` say so.

    Raises:
        UserError: no GPU has that name, or several are equally likely; the size is out of range; this machine has no
            GPU.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise UserError(f"a GPU is a name, or a size such as 24GB, and {quoted(text)} is neither")
    text = str(text).strip()
    if text.lower() == LOCAL:
        return _local_device()
    size = re.fullmatch(SIZE, text, re.IGNORECASE)
    if size and size["unit"]:
        return _of_size(text, float(size["number"]))
    fitting = _fitting(text)
    if not fitting and size and float(size["number"]) <= LARGEST_BARE_SIZE_GIB:
        return _of_size(f"{text}GB", float(text))
    if not fitting:
        raise _unknown(text)
    return fitting[0].device() if len(fitting) == 1 else _usual(text, fitting)


def as_device(gpu: str | float | Device) -> Device:
    """Return ``gpu`` if it is a device, else the one that `find_device` finds.

    Raises:
        UserError: as in `find_device`.
    """
    return gpu if isinstance(gpu, Device) else find_device(gpu)


def _local_device() -> Device:
    """Return this machine's GPU: its memory comes from the driver, the rest from the catalogue if it lists the GPU.

    Raises:
        UserError: there is no GPU, or no package that finds one is installed.
    """
    gpu = first_local_gpu()
    if gpu is None:
        raise UserError(
            "--gpu local: no GPU was found here, by NVML or PyTorch: name one (lorabench gpus), or give its memory "
            "such as 24GB"
        )
    known = known_device(gpu.name)
    if known is None:
        return Device(
            name=gpu.name,
            title=gpu.name,
            memory_bytes=gpu.memory_bytes,
            compute_capability=gpu.compute_capability,
            sources={"memory": "this machine's driver"},
        )
    return replace(known, memory_bytes=gpu.memory_bytes, sources={**known.sources, "memory": "this machine's driver"})


def known_device(name: str) -> Device | None:
    """Return the only GPU of the catalogue with that name (the catalogue's or the driver's); None if there is not
    exactly one."""
    fitting = _fitting(name)
    return fitting[0].device() if len(fitting) == 1 else None


@lru_cache(1024)  # records name their GPU by the thousand
def _fitting(text: str) -> tuple[_Entry, ...]:
    """Return the GPUs that ``text`` may mean: the one with exactly that name, or else all that contain its words."""
    words = _words(text)
    compact = "".join(words)
    exact = [entry for entry in _catalogue() if compact in entry.compact_names()]
    return tuple(exact or [entry for entry in _near(words) if not (entry.words() & DISTINCTIVE_WORDS) - set(words)])


def _near(words: list[str]) -> list[_Entry]:
    return [entry for entry in _catalogue() if words and set(words) <= entry.words()]


def _usual(text: str, fitting: tuple[_Entry, ...]) -> Device:
    """Return the GPU that people mean by an ambiguous name, with an assumption that lists the other GPUs.

    Raises:
        UserError: the catalogue does not say which one people mean.
    """
    usual = [entry for entry in fitting if entry.usual]
    if len(usual) != 1:
        raise UserError(f"{quoted(text)} fits several GPUs: name {' or '.join(entry.name for entry in fitting)}")
    meant = usual[0].device()
    others = " or ".join(f"{entry.name} ({_difference(meant, entry.device())})" for entry in fitting if not entry.usual)
    return replace(meant, assumptions=(f"gpu {' '.join(text.split())} means {meant.name}, not {others}",))


def _difference(meant: Device, other: Device) -> str:
    memory = "as much memory" if other.memory_bytes == meant.memory_bytes else in_gib(other.memory_bytes)
    rates = [(one.bandwidth_bytes_per_second, one.peak_flops_per_second) for one in (meant, other)]
    return f"{memory}, {'as fast' if rates[0] == rates[1] else 'another speed'}"


def _unknown(text: str) -> UserError:
    words = _words(text)
    near = _near(words)
    if not near and re.fullmatch(MISSPELT_SIZE, text, re.IGNORECASE):
        return UserError(
            f"no GPU {quoted(text)} in the catalogue (lorabench gpus lists all), and no size: write GiB, such as 24GB "
            "or 1.5GiB"
        )
    names = [entry.name for entry in near]
    meant = f"did you mean {' or '.join(names)}?" if near else did_you_mean("-".join(words), device_names())
    return UserError(
        f"no GPU {quoted(text)} in the catalogue: {meant} (lorabench gpus lists all; a size such as 24GB will do)"
    )


def _of_size(text: str, gib: float) -> Device:
    if not DRIVER_BYTES < gib * GIB <= LARGEST_SIZE_GIB * GIB:
        raise UserError(
            f"GPU memory {text}: must be above {in_gib(DRIVER_BYTES)}, which the driver keeps, and at most "
            f"{LARGEST_SIZE_GIB:,} GiB"
        )
    return Device(
        name="".join(text.split()),
        title=f"a GPU with {gib:g} GiB",
        memory_bytes=int(gib * GIB),
        sources={"memory": "as given"},
    )


def _words(text: str) -> list[str]:
    spaced = re.sub(r"[\s_/-]+", " ", text.lower())
    spaced = re.sub(r"(?<!\w)(\d+) ?(?:g|gb|gib)\b", r"\1gb", spaced)
    spaced = re.sub(r"\brtx(?=\w?\d)", "rtx ", spaced)
    words = [word for word in spaced.split() if word not in GENERIC_WORDS]
    return [re.sub(r"^sxm\d$", "sxm", word) for word in words]
