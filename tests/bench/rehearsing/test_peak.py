"""Where the peak is, by hand from an allocator's history as torch's snapshots have it."""

from __future__ import annotations

from typing import Any

from lorabench.bench.rehearsing.peak import Owner, find_peak


def event(action: str, address: int, size: int, at: int, *, module: str = "", line: int = 1) -> dict[str, Any]:
    frames = [
        {"filename": "/site-packages/torch/nn/functional.py", "line": 9, "name": "linear"},
        {"filename": "/home/x/train.py", "line": line, "name": "main"},
    ]
    return {
        "action": action,
        "addr": address,
        "size": size,
        "time_us": at,
        "user_metadata": module,
        "frames": frames if action == "alloc" else [],
    }


HISTORY = [
    event("segment_alloc", 1, 2**21, 0),
    event("alloc", 1, 100, 1, line=3),
    event("alloc", 2, 30, 2, module="model.layers.0.mlp"),
    event("alloc", 3, 30, 3, module="model.layers.1.mlp"),
    event("alloc", 4, 50, 4, module="lm_head", line=7),
    event("free_requested", 4, 50, 5),
    event("free_completed", 4, 50, 5),
    event("alloc", 4, 20, 6),
]


def test_the_peak_is_the_allocation_after_which_most_is_alive() -> None:
    peak = find_peak(HISTORY, {1: [(3, Owner("weights", "model.embed"))]}, step_ends=[2])
    assert peak is not None
    assert (peak.step, peak.module) == (1, "lm_head")
    assert peak.stack == ("/home/x/train.py:7 in main",)
    assert [(one.kind, one.place, one.count, one.bytes) for one in peak.alive] == [
        ("weights", "model.embed", 1, 100),
        ("made in forward", "model.layers.*.mlp", 2, 60),
        ("made in forward", "lm_head", 1, 50),
    ]


def test_an_address_is_whose_it_was_while_the_tensor_lived() -> None:
    later = {4: [(7, Owner("gradients", "model.embed"))]}
    peak = find_peak(HISTORY, later, step_ends=[])
    assert peak is not None
    assert "gradients" not in {one.kind for one in peak.alive}


def test_what_no_module_and_no_stack_made_was_made_in_backward() -> None:
    bare = {**event("alloc", 1, 10, 1), "frames": []}
    peak = find_peak([bare], {}, step_ends=[])
    assert peak is not None
    assert [(one.kind, one.place) for one in peak.alive] == [("made in backward", "")]


def test_without_an_allocation_there_is_no_peak() -> None:
    assert find_peak([event("segment_alloc", 1, 2**21, 0)], {}, step_ends=[]) is None
