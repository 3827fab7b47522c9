"""PYTORCH_ALLOC_CONF, as torch reads it. `tests/bench/null_gpu/test_allocator.py` asks torch itself."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.allocator_settings import DEFAULTS, read_settings, settings_of_environment
from lorabench.estimator.quantities import MIB

REFUSED = {
    "nonsense:1": "Unrecognized key 'nonsense'",
    "expandable_segments:true": "Expected 'True' or 'False'",
    "max_split_size_mb:10": "CachingAllocator option max_split_size_mb too small, must be >= 20",
    "large_segment_size_mb:32,max_split_size_mb:24": "max_split_size_mb too small, must be >= 32",
    "large_segment_size_mb:10": "CachingAllocator option large_segment_size_mb must be > 10 MB",
    "max_non_split_rounding_mb:10": "CachingAllocator option max_non_split_rounding_mb too small, must be >= 20",
    "garbage_collection_threshold:1.5": "garbage_collect_threshold is invalid, set it in (0.0, 1.0)",
    "per_process_memory_fraction:1.5": "per_process_memory_fraction is invalid, set it in [0.0, 1.0]",
    "roundup_power2_divisions:3": "For roundups, the divisions has to be power of 2",
    "roundup_power2_divisions:[256:3]": "For roundups, the divisions has to be power of 2 or 0 to disable roundup",
    "roundup_power2_divisions:[3:1]": "For roundups, the intervals have to be power of 2",
    "backend:other": "Unknown allocator backend, options are native and cudaMallocAsync",
}
"""What torch refuses → what it says."""
REFUSED_HERE = {
    "expandable_segments": "':' is expected, not the end",
    "expandable_segments=True": "Unrecognized key 'expandable_segments=True'",
    "max_split_size_mb:128 garbage_collection_threshold:0.6": "',' is expected, not ':'",
    "max_split_size_mb:x": "max_split_size_mb 'x' is not a whole number",
    "roundup_power2_divisions:[256:1": "a value is missing at the end",
    "backend:cudaMallocAsync": "lorabench does not replay",
    "throw_on_cudamalloc_oom:True": "lorabench does not replay",
}
"""What torch fails on without words for users, or accepts although it is not replayed → what lorabench says."""
ACCEPTED: dict[str, dict[str, Any]] = {
    "": {},
    " expandable_segments : True ,": {"expandable_segments": True},
    "max_split_size_mb:128,garbage_collection_threshold:0.6": {"max_split": 128 * MIB, "collection_threshold": 0.6},
    "max_split_size_mb:32,large_segment_size_mb:24": {
        "max_split": 32 * MIB,
        "large_segment": 24 * MIB,
        "max_non_split_rounding": 24 * MIB,
    },
    "max_non_split_rounding_mb:64": {"max_non_split_rounding": 64 * MIB},
    "per_process_memory_fraction:0.5": {"memory_fraction": 0.5},
    "roundup_power2_divisions:4": {"roundup_divisions": (4,) * 16},
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]": {"roundup_divisions": (1,) * 9 + (2, 4) + (8,) * 5},
    "roundup_power2_divisions:[64:2,256:8]": {"roundup_divisions": (2,) * 7 + (0, 8) + (0,) * 7},
    "backend:native,pinned_use_background_threads:True,throw_on_cudamalloc_oom:False": {},
}
"""Texts → the settings that differ from the defaults."""


@pytest.mark.parametrize("text", ACCEPTED)
def test_settings_are_what_the_text_says(text: str) -> None:
    settings = read_settings(text)
    changed = {name: getattr(settings, name) for name in settings.__struct_fields__ if name != "text"}
    defaults = {name: getattr(DEFAULTS, name) for name in changed}
    assert {name: value for name, value in changed.items() if value != defaults[name]} == ACCEPTED[text]


@pytest.mark.parametrize("text", [*REFUSED, *REFUSED_HERE])
def test_what_torch_does_not_accept_and_what_is_not_replayed_is_refused(text: str) -> None:
    with pytest.raises(UserError) as refusal:
        read_settings(text)
    assert (REFUSED | REFUSED_HERE)[text] in str(refusal.value)


def test_the_older_variable_counts_if_both_are_set() -> None:
    both = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert settings_of_environment(both).text == "expandable_segments:True"
    assert settings_of_environment(both | {"PYTORCH_CUDA_ALLOC_CONF": ""}) == DEFAULTS
    assert settings_of_environment({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}).max_split == 64 * MIB
    with pytest.raises(UserError, match=r"^PYTORCH_ALLOC_CONF=nonsense:1: Unrecognized key"):
        settings_of_environment({"PYTORCH_ALLOC_CONF": "nonsense:1"})


def test_a_limit_needs_a_device() -> None:
    settings = read_settings("per_process_memory_fraction:0.25")
    assert settings.on(1000 * MIB).limit == 250 * MIB
    with pytest.raises(UserError, match="share of a GPU's memory"):
        settings.on(None)
