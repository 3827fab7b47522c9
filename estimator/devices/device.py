"""GPUs: memory, bandwidth and dense peak rates, from a catalogue; or a bare memory size."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.quantities import GIB, in_gib

CATALOGUE = Path(__file__).parent / "gpus.json"
GENERIC_WORDS = {"nvidia", "geforce", "tesla", "amd", "instinct", "radeon", "graphics", "generation", "gpu", "edition"}
"""Words of the drivers' names that tell no GPU from another."""
DISTINCTIVE_WORDS = {"ti", "super", "ada", "pro"}
"""Words without which the name is another GPU's: an RTX 4070 is no RTX 4070 Ti SUPER, an RTX 4000 no RTX 4000 Ada."""
SIZE = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*(?:g|gb|gib)", re.IGNORECASE)
MISSPELT_SIZE = re.compile(
    r"[-+]?(?:[\d.,_]|e[-+]?\d)*(?:nan|inf)?\s*(?:[kmgtp]?i?bs?|[kmgtp]|[a-z]*bytes?)?", re.IGNORECASE
)
"""A number, a unit or both, as no GPU is called."""
LOCAL = "local"
"""Stands for the machine's own GPU."""
DRIVER_BYTES = 768 * 2**20
"""What the driver keeps of the memory that it reports. torch's out-of-memory messages say what is left of it: 14.75 of
15 GiB on a T4, 23.6 of 24 on an RTX 4090, 39.5 of 40 and 79.25 of 80 on A100s. This is the most of these."""
LARGEST_SIZE_GIB = 100_000


class Device(Struct, frozen=True, kw_only=True):
    """One GPU as a program sees it; of a card with two dies, one die."""

    name: str
    """Short name, such as ``rtx-4090``; the size as given where only a size is known."""
    title: str
    """The vendor's name."""
    memory_bytes: int
    """All of its memory, as the driver reports it."""
    bandwidth_bytes_per_second: float | None = None
    peak_flops_per_second: dict[str, float] = {}
    """float32, tf32, bfloat16, float16 → dense peak of matrix products that accumulate in float32; absent where the
    GPU has no units for it. Never with sparsity."""
    compute_capability: str | None = None
    """CUDA compute capability, such as ``8.9``, or AMD's target, such as ``gfx942``."""
    multiprocessors: int | None = None
    """Streaming multiprocessors, or AMD's compute units, among which a matrix product's tiles are dealt out."""
    cache_bytes: int | None = None
    """The last cache that all multiprocessors share: L2, or AMD's Infinity Cache; None where it is not known."""
    tdp_watts: int | None = None
    """Board power; for one die of two, its half."""
    supports_bfloat16: bool | None = None
    """Whether matrix units take bfloat16; without, PyTorch emulates it slowly."""
    supports_flash_attention: bool | None = None
    """Whether the flash-attn 2 package runs on it: compute capability 8.0 or newer, or AMD CDNA 2 or newer."""
    supports_bitsandbytes: bool | None = None
    """Whether bitsandbytes' 4-bit kernels run on it: compute capability 6.0 or newer, or AMD CDNA 2 or newer."""
    sources: dict[str, str] = {}
    """rates, units (multiprocessors and cache), memory → where the figures come from."""

    @property
    def usable_bytes(self) -> int:
        """What a process can use of its memory."""
        return self.memory_bytes - DRIVER_BYTES


class _Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU of the catalogue file, in the units of datasheets."""

    name: str
    title: str
    memory_gb: int
    """The size that it is sold under."""
    memory_mib: int
    bandwidth_gb_per_second: float
    dense_tflops: dict[str, float]
    compute_capability: str
    multiprocessors: int
    cache_mib: float | None = None
    tdp_watts: int
    rates_source: str
    units_source: str
    """Of multiprocessors and cache."""
    memory_source: str
    other_words: tuple[str, ...] = ()
    """Words that the driver adds to the name."""

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


@cache
def _catalogue() -> tuple[_Entry, ...]:
    return msgspec.json.decode(CATALOGUE.read_bytes(), type=tuple[_Entry, ...])


def device_names() -> list[str]:
    """Return the names of the GPUs in the catalogue, in its order: by vendor, line and generation."""
    return [entry.name for entry in _catalogue()]


def all_devices() -> list[Device]:
    """Return the GPUs of the catalogue, in its order."""
    return [entry.device() for entry in _catalogue()]


def find_device(text: str) -> Device:
    """Return the GPU that ``text`` names, or one of which only the memory is known.

    ``text`` is a catalogue name or a part of it that fits only one GPU (``4090``, ``a100 80gb sxm``), a name as the
    driver writes it (``NVIDIA A100-SXM4-80GB``), in any case, with spaces, hyphens or underscores; or a memory size
    (``24GB``, ``24GiB`` and ``24G`` are all 24 · 2³⁰ bytes, as GPU vendors count); or ``local``, this machine's own.

    Raises:
        UserError: no GPU or several have that name, or the size is out of range, or there is none here.
    """
    if not isinstance(text, str):
        raise UserError(f"a GPU is a name or a size such as 24GB, in quotes, and {text!r} is neither")
    if text.strip().lower() == LOCAL:
        from lorabench.estimator.devices.local_gpu import local_device

        return local_device()
    size = SIZE.fullmatch(text.strip())
    if size:
        return _of_size(text.strip(), float(size[1]))
    words = _words(text)
    compact = "".join(words)
    exact = [
        entry for entry in _catalogue() if compact in (_compact(entry.name), _compact(entry.name).removeprefix("rtx"))
    ]
    near = [entry for entry in _catalogue() if words and set(words) <= entry.words()]
    fitting = exact or [entry for entry in near if not (entry.words() & DISTINCTIVE_WORDS) - set(words)]
    if not fitting:
        if not near and MISSPELT_SIZE.fullmatch(text.strip()):
            raise UserError(
                f"no GPU {text!r} in the catalogue (lorabench gpus lists all), and no size: write GiB, such as 24GB or "
                "1.5GiB"
            )
        names = [entry.name for entry in near]
        meant = f"did you mean {' or '.join(names)}?" if near else did_you_mean("-".join(words), device_names())
        raise UserError(
            f"no GPU {text!r} in the catalogue: {meant} (lorabench gpus lists all; a size such as 24GB will do)"
        )
    if len(fitting) > 1:
        raise UserError(f"{text!r} is several GPUs: say {' or '.join(entry.name for entry in fitting)}")
    return fitting[0].device()


def _of_size(text: str, gib: float) -> Device:
    if not DRIVER_BYTES < gib * GIB <= LARGEST_SIZE_GIB * GIB:
        raise UserError(
            f"GPU memory {text}: must be above {in_gib(DRIVER_BYTES)}, which the driver keeps, and at most "
            f"{LARGEST_SIZE_GIB:,} GiB"
        )
    return Device(
        name=text, title=f"a GPU with {gib:g} GiB", memory_bytes=int(gib * GIB), sources={"memory": "as given"}
    )


def _words(text: str) -> list[str]:
    words = [word for word in re.split(r"[\s_/-]+", text.lower()) if word and word not in GENERIC_WORDS]
    words = [re.sub(r"^(\d+)(g|gib)$", r"\1gb", word) for word in words]
    return [re.sub(r"^sxm\d$", "sxm", word) for word in words]


def _compact(name: str) -> str:
    return name.replace("-", "")
