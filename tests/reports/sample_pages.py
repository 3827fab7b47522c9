"""Pages that tests look at: their runs, and how they are made."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import msgspec
import pytest

from lorabench.bench.records.record import RunRecord
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.reports.page import render_page, render_report
from lorabench.reports.runs import Run, arrange
from lorabench.reports.sections import SECTIONS
from lorabench.reports.subject import Subject
from tests.sample_records import MODEL_CONFIG, as_rehearsed, sample_record

HOSTILE = "</script><script>window.ran=1</script><img src=x onerror='window.ran=1'><!--\u2028\u202e{a|b}&amp;\"'"
MIB = 2**20
MODELS = {
    "llama": find_model("meta-llama/Llama-3.1-8B"),
    "windowed": find_model("mistralai/Mistral-7B-v0.1"),
    "eager only": find_model("google/gemma-2-2b"),
    "learned positions": msgspec.structs.replace(find_model("openai-community/gpt2"), name=HOSTILE),
}
"""Those of the page ``planning``, where nothing ran."""
TIMELINE = tuple((float(event), (event * 37 % 50 + 1) * MIB) for event in range(200))


def suite() -> list[RunRecord]:
    """Two models, three methods, every outcome."""
    records = [
        sample_record(model=model, model_config={**MODEL_CONFIG, "name": model}, method=method, rank=rank, batch_size=4)
        for model in ("demo/llama-2m", "demo/other")
        for method, rank in (("full", None), ("lora", 8), ("lora", 64), ("qlora", 8))
    ]
    return [
        *records,
        sample_record(
            rank=128, outcome="oom", message="Tried to allocate 2 GiB", traceback="File 'step.py'\n  train()"
        ),
        sample_record(rank=256, outcome="timeout"),
        sample_record(rank=300, outcome="skipped"),
        measured(
            sample_record(rank=32, losses=[6.0, None, 5.0, 4.0]),
            timeline=TIMELINE,
            mfu=0.4321,
            held_out_loss_before=6.5,
            held_out_loss_after=4.25,
            unstable=("clocks changed",),
        ),
    ]


def measured(record: RunRecord, **changes: Any) -> RunRecord:
    """Return a record with changes of its measurement."""
    assert record.measurement is not None
    return msgspec.structs.replace(record, measurement=msgspec.structs.replace(record.measurement, **changes))


def hostile() -> list[RunRecord]:
    """Markup wherever a record holds text."""
    record = sample_record(model=HOSTILE, suite=HOSTILE, message=HOSTILE, traceback=HOSTILE, outcome="error")
    device = msgspec.structs.replace(record.device, name=HOSTILE)
    environment = msgspec.structs.replace(record.environment, packages={HOSTILE: HOSTILE, "__proto__": "1"})
    trained = sample_record(model="x" * 400, model_config={**MODEL_CONFIG, "k": HOSTILE})
    recipe = make_recipe(**{**trained.recipe.settings(), "target_modules": f"q_proj,{HOSTILE}"})
    assert trained.measurement is not None
    memory = msgspec.structs.replace(
        trained.measurement.memory, phase=HOSTILE, components={HOSTILE: 9 * MIB, "__proto__": MIB}
    )
    return [
        msgspec.structs.replace(record, device=device, environment=environment, started_at=HOSTILE),
        measured(msgspec.structs.replace(trained, recipe=recipe), memory=memory, unstable=(HOSTILE,)),
        sample_record(model="x" * 400),
        sample_record(model="=1+1", rank=3),
    ]


def odd() -> list[RunRecord]:
    """What a run hardly ever measures, and names hardly ever are."""
    names = ["", "a\nb\tc", "../../etc/passwd", "نموذج لغوي/עברית", "一" * 100 + "e\u0301" * 40 + "🦙" * 40]
    trained = [
        sample_record(losses=[]),
        sample_record(losses=[None] * 12),
        sample_record(losses=[0.0] * 12),
        sample_record(losses=[-5.0, 1e300]),
        sample_record(losses=[5.0], step_seconds=[1e-9]),
        sample_record(step_seconds=[1e9] * 5),
    ]
    first = trained[0].measurement
    assert first is not None
    nothing = msgspec.structs.replace(first.memory, components={}, phase_peaks_bytes={}, peak_allocated_bytes=0)
    return [
        *trained,
        measured(sample_record(), memory=nothing, timeline=()),
        measured(sample_record(), tokens_per_step=0, timeline=((0.0, 0),)),
        *[sample_record(model=name, model_config={**MODEL_CONFIG, "name": name}) for name in names],
    ]


def many() -> list[RunRecord]:
    """More recipes of one model than a page derives the estimates of."""
    return [sample_record(rank=rank, batch_size=size) for rank in range(1, 52) for size in (1, 2, 4, 8)]


PAGES: dict[str, list[Run]] = {
    name: arrange({"results": records})
    for name, records in {
        "suite": suite(),
        "hostile": hostile(),
        "odd": odd(),
        "many": many(),
        "single": [sample_record()],
        "failed": [sample_record(outcome="oom"), sample_record(rank=1, outcome="error", traceback="boom")],
        "unpredicted": [msgspec.structs.replace(sample_record(step_seconds=[0.4], losses=[6.0]), prediction=None)],
    }.items()
} | {
    "folders": arrange(
        {
            "old": [sample_record(rank=rank, peak_allocated_bytes=100 * MIB) for rank in (1, 2)],
            f"new {HOSTILE}": [sample_record(rank=rank, peak_allocated_bytes=90 * MIB) for rank in (1, 2)],
        }
    ),
    "rehearsed": arrange(
        {
            "measured": [sample_record(rank=1, backend="cuda", peak_allocated_bytes=100 * MIB)],
            "rehearsed": [
                as_rehearsed(sample_record(rank=1, backend="cuda", peak_allocated_bytes=99 * MIB)),
                as_rehearsed(sample_record(rank=2, backend="cuda", peak_allocated_bytes=98 * MIB)),
                as_rehearsed(sample_record(rank=3, backend="cuda", outcome="oom")),
            ],
        }
    ),
}


def page_of(runs: list[Run]) -> str:
    """Return the page of ``runs`` without estimates and derivations, which take seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("lorabench.reports.sections.records"), "DERIVED", 0)
        sections = [(section, data) for section in SECTIONS if (data := section.data(Subject(runs))) is not None]
    return render_page(runs[0].record.suite, "Tested", sections)


def make_page(name: str) -> str:
    """Return a page of `PAGES`, that of the suite whole; or ``planning``."""
    if name == "planning":
        return render_report([], [*MODELS.values()], [*map(find_device, ("rtx-4090", "24GB"))])
    return render_report(PAGES[name]) if name == "suite" else page_of(PAGES[name])
