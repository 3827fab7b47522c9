"""Find the peak, its place and the tensors alive there, from the history of torch's caching allocator."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lorabench.bench.records.text import without_own_folders
from lorabench.bench.rehearsing.result import AliveTensors, Peak

MOST_GROUPS = 20
FRAMES_KEPT = 12
LIBRARIES = re.compile(r"/(torch|lorabench/bench/(rehearsing|null_gpu))/|<frozen|importlib/")
"""Files that are no place in the program: of torch, of this observer, of Python's import system."""


class Owner(NamedTuple):
    """What a tensor is: its kind, and the parameter or module that it belongs to."""

    kind: str
    place: str


Owners = dict[int, list[tuple[int, Owner]]]
"""Address → pairs of a time, in microseconds, and the tensor that was seen there."""


def find_peak(events: Sequence[Mapping[str, Any]], owners: Owners, step_ends: Sequence[int]) -> Peak | None:
    """Return the peak of ``events``, one device's entry of ``device_traces`` in a memory snapshot of torch.

    Args:
        events: all events from the first allocation on.
        owners: see `Owners`.
        step_ends: time at which each optimizer step ended, in microseconds.
    """
    live: dict[int, int] = {}
    allocated = highest = 0
    peak_index = -1
    for index, event in enumerate(events):
        if event["action"] == "alloc":
            live[event["addr"]] = event["size"]
            allocated += event["size"]
            if allocated > highest:
                highest, peak_index = allocated, index
        elif event["action"] == "free_completed":
            allocated -= live.pop(event["addr"], 0)
    if peak_index < 0:
        return None
    alive: dict[int, Mapping[str, Any]] = {}
    for event in events[: peak_index + 1]:
        if event["action"] == "alloc":
            alive[event["addr"]] = event
        elif event["action"] == "free_completed":
            alive.pop(event["addr"], None)
    freed: dict[int, float] = {}
    for event in events[peak_index + 1 :]:
        if event["action"] == "free_completed":
            freed.setdefault(event["addr"], event["time_us"])
    last = events[peak_index]
    return Peak(
        step=sum(1 for end in step_ends if end < last["time_us"]),
        module=str(last.get("user_metadata") or ""),
        stack=tuple(stack_of(last.get("frames", ()))[:FRAMES_KEPT]),
        alive=tuple(
            _grouped(
                (event["size"], _owner(owners.get(address, []), event, freed.get(address, math.inf)) or _maker(event))
                for address, event in alive.items()
            )
        ),
    )


def _owner(seen: Sequence[tuple[int, Owner]], event: Mapping[str, Any], freed: float) -> Owner | None:
    """Return the tensor that was seen at an address between its allocation and its free; None if none was."""
    return next((owner for when, owner in seen if event["time_us"] <= when <= freed), None)


def stack_of(frames: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return Python frames as ``file:line in function``, innermost first, without `LIBRARIES`."""
    return [
        without_own_folders(f"{frame['filename']}:{frame['line']} in {frame['name']}")
        for frame in frames
        if not LIBRARIES.search(str(frame["filename"]))
    ]


def _grouped(alive: Iterable[tuple[int, Owner]]) -> list[AliveTensors]:
    counts: Counter[Owner] = Counter()
    sizes: Counter[Owner] = Counter()
    for size, owner in alive:
        group = Owner(owner.kind, without_layer_numbers(owner.place))
        counts[group] += 1
        sizes[group] += size
    return [
        AliveTensors(kind=owner.kind, place=owner.place, count=counts[owner], bytes=size)
        for owner, size in sizes.most_common(MOST_GROUPS)
    ]


def _maker(event: Mapping[str, Any]) -> Owner:
    module = event.get("user_metadata")
    if module:
        return Owner("made in forward", str(module))
    stack = stack_of(event.get("frames", ()))
    return Owner("made elsewhere", stack[0]) if stack else Owner("made in backward", "")


def without_layer_numbers(path: str) -> str:
    """Return a module's path with ``*`` in place of layer numbers. A ``file:line`` stays as it is."""
    return ".".join("*" if part.isdecimal() else part for part in path.split(".")) if ":" not in path else path
