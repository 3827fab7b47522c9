"""Settings of torch's caching allocator: PYTORCH_ALLOC_CONF, read as torch reads it.

Source: torch 2.13, `c10/core/AllocatorConfig.cpp` and `c10/cuda/CUDAAllocatorConfig.cpp`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.quantities import MIB

VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The first of these that is set counts, even if it is empty."""
SMALLEST_OWN_SEGMENT = 10 * MIB
"""From here on an allocation gets a segment of its own size."""
INTERVALS = 16
"""Intervals of sizes with divisions of their own: below 2 MiB, from there on to 4 MiB, … and from 32 GiB on."""
EXPANDABLE = "expandable_segments:True"


class AllocatorSettings(Struct, frozen=True, kw_only=True):
    """The settings that decide which memory the allocator takes, with torch's defaults."""

    text: str = ""
    """What they were read from; "" for the defaults."""
    expandable_segments: bool = False
    large_segment: int = 20 * MIB
    """Bytes of a segment that serves allocations between 1 and 10 MiB."""
    max_split: int | None = None
    """Blocks of so many bytes or more are not split; None splits all."""
    max_non_split_rounding: int = 20 * MIB
    """Such a block serves an allocation only if fewer bytes than these are left over."""
    roundup_divisions: tuple[int, ...] = ()
    """Divisions between two powers of 2 to which sizes are rounded up, for each of the `INTERVALS`; 0 or 1 for none."""
    collection_threshold: float = 0.0
    """Share of the limit from which on old cached segments are given back; 0 for never."""
    memory_fraction: float = 1.0
    """Share of the device's memory that the allocator may take."""
    limit: int | None = None
    """That share in bytes. It is known only for a device (`on`)."""

    def on(self, device_bytes: int | None) -> AllocatorSettings:
        """Return the settings on a device with so many bytes for processes; None if no device is known.

        Raises:
            UserError: the limit depends on an unknown device.
        """
        if self.memory_fraction == 1:
            return self
        if device_bytes is None:
            raise UserError(f"{self.text}: per_process_memory_fraction is a share of a GPU's memory: name one by --gpu")
        return replace(self, limit=int(self.memory_fraction * device_bytes))

    def expandable(self) -> AllocatorSettings:
        """Return the settings with expandable segments."""
        return replace(self, text=",".join(filter(None, (self.text, EXPANDABLE))), expandable_segments=True)

    def unlimited(self) -> AllocatorSettings:
        """Return the settings without the limit."""
        return replace(self, limit=None)

    def unheeded(self) -> tuple[str, ...]:
        """Return what to say if no allocator is replayed."""
        if not self.text:
            return ()
        return (f"{self.text} is not heeded without a replay: reserved memory is that of the allocator's defaults",)

    @property
    def keeps_to_range(self) -> bool:
        """Whether only those settings differ from the defaults for which `reserve` has a range."""
        return replace(self, text="", expandable_segments=False) == DEFAULTS

    def warnings(self) -> tuple[str, ...]:
        """Return what the settings lack to have an effect."""
        if self.collection_threshold and self.memory_fraction == 1:
            return (
                "garbage_collection_threshold changes nothing: torch collects only if per_process_memory_fraction, or "
                "torch.cuda.set_per_process_memory_fraction, is below 1",
            )
        return ()


DEFAULTS = AllocatorSettings()


def settings_of_environment(environment: Mapping[str, str] = os.environ) -> AllocatorSettings:
    """Return the settings of a process with these environment variables.

    Raises:
        UserError: torch would not accept them, or lorabench does not replay them.
    """
    text = text_of_environment(environment)
    try:
        return read_settings(text)
    except UserError as error:
        variable = next(name for name in VARIABLES if name in environment)
        raise UserError(f"{variable}={text}: {error}") from error


def text_of_environment(environment: Mapping[str, str] = os.environ) -> str:
    """Return the text of the settings of a process with these environment variables; "" if none is set."""
    return next((environment[name] for name in VARIABLES if name in environment), "")


def read_settings(text: str) -> AllocatorSettings:
    """Return the settings of a text such as ``max_split_size_mb:128,expandable_segments:True``.

    Raises:
        UserError: torch would not accept them, or lorabench does not replay them.
    """
    tokens = _Tokens(text)
    found: dict[str, str | list[tuple[str, str]]] = {}
    while (key := tokens.next()) is not None:
        if key not in READERS and key not in WITHOUT_EFFECT:
            raise UserError(f"Unrecognized key {quoted(key)} in CUDA allocator config")
        tokens.expect(":")
        found[key] = tokens.value()
        if tokens.left:
            tokens.expect(",")
    settings = AllocatorSettings(text=text.strip())
    for key in READERS:  # large_segment_size_mb is the first, since others may not be smaller
        if key in found:
            settings = READERS[key](settings, key, found[key])
    return settings


class _Tokens:
    """The parts of a text, as torch's ConfigTokenizer divides it: words and the characters ``: , [ ]``."""

    def __init__(self, text: str) -> None:
        self._text = text
        for character in ":,[]":
            text = text.replace(character, f"\0{character}\0")
        words = ("".join(word.split()) for word in text.split("\0"))
        self.left = [word for word in words if word]
        self.left.reverse()

    def next(self) -> str | None:
        """Take the next part; None at the end."""
        return self.left.pop() if self.left else None

    def word(self) -> str:
        """Take the next part, which must be there."""
        word = self.next()
        if word is None:
            raise UserError(f"{self._text}: a value is missing at the end")
        return word

    def expect(self, character: str) -> None:
        """Take ``character``, which must come next."""
        word = self.next()
        if word != character:
            found = "the end" if word is None else repr(word)
            raise UserError(f"{self._text}: {character!r} is expected, not {found}: write key:value,key:value")

    def value(self) -> str | list[tuple[str, str]]:
        """Take a value: a word, or a list of pairs in brackets."""
        word = self.word()
        return [*self._pairs()] if word == "[" else word

    def _pairs(self) -> Iterator[tuple[str, str]]:
        while (first := self.word()) != "]":
            self.expect(":")
            yield first, self.word()
            if self.left and self.left[-1] != "]":
                self.expect(",")


Value = str | list[tuple[str, str]]


def _bytes(field: str, least: Callable[[AllocatorSettings], int], *, beyond: bool = False) -> _Reader:
    def read(settings: AllocatorSettings, key: str, value: Value) -> AllocatorSettings:
        size, smallest = _count(key, value) * MIB, least(settings)
        if beyond and size <= smallest:
            raise UserError(f"CachingAllocator option {key} must be > {smallest // MIB} MB")
        if size < smallest:
            raise UserError(f"CachingAllocator option {key} too small, must be >= {smallest // MIB}")
        changed: dict[str, int] = {field: size}
        if key == "large_segment_size_mb":
            changed["max_non_split_rounding"] = size
        return replace(settings, **changed)

    return read


def _count(key: str, value: Value) -> int:
    if isinstance(value, list) or not value.isdecimal():
        raise UserError(f"{key} {quoted(_shown(value))} is not a whole number")
    return int(value)


def _fraction(key: str, value: Value) -> float:
    try:
        return float("nan") if isinstance(value, list) else float(value)
    except ValueError:
        raise UserError(f"{key} {quoted(_shown(value))} is not a number") from None


def _truth(value: Value) -> bool:
    if value not in ("True", "False"):
        raise UserError(f"Expected 'True' or 'False' but got {quoted(_shown(value))}")
    return value == "True"


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else "[…]"


def _collection_threshold(settings: AllocatorSettings, key: str, value: Value) -> AllocatorSettings:
    threshold = _fraction(key, value)
    if not 0 < threshold < 1:
        raise UserError("garbage_collect_threshold is invalid, set it in (0.0, 1.0)")
    return replace(settings, collection_threshold=threshold)


def _memory_fraction(settings: AllocatorSettings, key: str, value: Value) -> AllocatorSettings:
    fraction = _fraction(key, value)
    if not 0 <= fraction <= 1:
        raise UserError("per_process_memory_fraction is invalid, set it in [0.0, 1.0]")
    return replace(settings, memory_fraction=fraction)


def _expandable_segments(settings: AllocatorSettings, key: str, value: Value) -> AllocatorSettings:
    return replace(settings, expandable_segments=_truth(value))


def _divisions(settings: AllocatorSettings, key: str, value: Value) -> AllocatorSettings:
    """Read one number for all intervals, or ``[256:1,512:2,>:8]``: for sizes from 256 MiB on and below it 1, …."""
    if isinstance(value, str):
        divisions = _count(key, value)
        if not _is_power_of_2(divisions):
            raise UserError("For roundups, the divisions has to be power of 2")
        return replace(settings, roundup_divisions=(divisions,) * INTERVALS)
    all_, last, first = [0] * INTERVALS, 0, True
    for boundary, text in value:
        divisions = _count(key, text)
        if divisions and not _is_power_of_2(divisions):
            raise UserError("For roundups, the divisions has to be power of 2 or 0 to disable roundup")
        if boundary == ">":
            all_[last + 1 :] = [divisions] * (INTERVALS - last - 1)
            continue
        megabytes = _count(key, boundary)
        if not _is_power_of_2(megabytes):
            raise UserError("For roundups, the intervals have to be power of 2")
        last = min(megabytes.bit_length() - 1, INTERVALS - 1)
        if first:
            all_[:last] = [divisions] * last
            first = False
        all_[last] = divisions
    return replace(settings, roundup_divisions=tuple(all_))


def _backend(settings: AllocatorSettings, key: str, value: Value) -> AllocatorSettings:
    if value == "cudaMallocAsync":
        raise UserError("backend:cudaMallocAsync is the driver's allocator, which lorabench does not replay: unset it")
    if value != "native":
        raise UserError("Unknown allocator backend, options are native and cudaMallocAsync")
    return settings


def _early_failure(settings: AllocatorSettings, key: str, value: Value) -> AllocatorSettings:
    if _truth(value):
        raise UserError(f"{key}:True fails before the cache is given back, which lorabench does not replay: unset it")
    return settings


def _is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _large_segment(settings: AllocatorSettings) -> int:
    return settings.large_segment


_Reader = Callable[[AllocatorSettings, str, Value], AllocatorSettings]
READERS: dict[str, _Reader] = {
    "large_segment_size_mb": _bytes("large_segment", lambda settings: SMALLEST_OWN_SEGMENT, beyond=True),
    "max_split_size_mb": _bytes("max_split", _large_segment),
    "max_non_split_rounding_mb": _bytes("max_non_split_rounding", _large_segment),
    "garbage_collection_threshold": _collection_threshold,
    "roundup_power2_divisions": _divisions,
    "expandable_segments": _expandable_segments,
    "per_process_memory_fraction": _memory_fraction,
    "backend": _backend,
    "throw_on_cudamalloc_oom": _early_failure,
}
"""Key → the function that adds its value to the settings."""
WITHOUT_EFFECT = frozenset(
    {
        "graph_capture_record_stream_reuse",
        "pinned_free_catch_all",
        "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "release_lock_on_cudamalloc",
    }
)
"""Keys that change no memory of the device in training: of pinned memory, CUDA graphs and locks."""
