from __future__ import annotations

from typing import Any

import msgspec

from lorabench.bench.records import RunRecord
from lorabench.reports.runs import Run, arrange
from lorabench.reports.sections import SECTIONS
from lorabench.reports.sections.environments import environments
from lorabench.reports.sections.losses import losses
from lorabench.reports.sections.memory import memory
from lorabench.reports.sections.records import records
from lorabench.reports.sections.summary import Headline, summary
from lorabench.reports.sections.throughput import throughput
from tests.sample_records import sample_record

MIB = 2**20


def runs_of(*records: RunRecord) -> list[Run]:
    return arrange({"results": records})


def headlines(*records: RunRecord) -> dict[str, Headline]:
    return {headline.name: headline for headline in summary(runs_of(*records))["headlines"]}


def test_the_headline_error_is_the_median_with_the_worst_named() -> None:
    estimates = {4: 101, 8: 98, 16: 103}
    shown = headlines(
        *[
            sample_record(rank=rank, predicted_peak_bytes=estimate * MIB, peak_allocated_bytes=100 * MIB)
            for rank, estimate in estimates.items()
        ]
    )
    assert shown["accuracy"].value == "2.00% off"
    assert shown["accuracy"].note == "Median of 3 runs; worst +3.00% (llama-2m lora r16)."


def test_the_headline_ratio_compares_recipes_that_differ_in_method_only() -> None:
    shown = headlines(
        sample_record(method="full", peak_allocated_bytes=400 * MIB),
        sample_record(method="full", batch_size=8, peak_allocated_bytes=900 * MIB),
        sample_record(rank=8, peak_allocated_bytes=150 * MIB),
        sample_record(rank=64, peak_allocated_bytes=250 * MIB),
        sample_record(method="qlora", rank=8, peak_allocated_bytes=100 * MIB),
    )
    assert shown["ratio"].value == "4.00 : 1.50 : 1"
    assert shown["ratio"].note == "400.00 MiB : 150.00 MiB : 100.00 MiB measured, llama-2m, rank 8, 1×256."


def test_without_three_measured_methods_there_is_no_ratio() -> None:
    assert "ratio" not in headlines(
        sample_record(method="full", outcome="oom"), sample_record(), sample_record(method="qlora")
    )


def test_the_fastest_run_is_named() -> None:
    shown = headlines(sample_record(rank=8, step_seconds=[0.5] * 3), sample_record(rank=9, step_seconds=[0.25] * 3))
    assert shown["fastest"].value == "1,024 tokens/s"
    assert "lora r9" in shown["fastest"].note


def test_outcomes_are_counted() -> None:
    failed = [sample_record(rank=1, outcome="oom"), sample_record(rank=2, outcome="oom")]
    counted = summary(runs_of(*failed, sample_record(rank=3, outcome="timeout"), sample_record()))["outcomes"]
    assert {outcome: count for outcome, _, count in counted} == {"oom": 2, "ok": 1, "timeout": 1}


def test_mixed_devices_and_versions_are_noticed() -> None:
    same = runs_of(sample_record(), sample_record(rank=8))
    assert environments(same)["differing"] == []
    assert len(environments(same)["environments"]) == 1
    mixed = environments(runs_of(sample_record(), sample_record(rank=8, device_kind="cuda")))
    assert mixed["differing"] == ["device", "memory", "CUDA", "driver"]
    assert [environment["count"] for environment in mixed["environments"]] == [1, 1]


def test_figures_hold_one_model_and_few_runs_on_one_scale() -> None:
    records = [sample_record(model=model, rank=rank) for model in ("a", "b") for rank in range(1, 31)]
    shown = memory(runs_of(*records))
    assert shown is not None
    assert [(figure["model"], figure["part"]) for figure in shown["figures"]] == [
        (model, f"{part} of 3") for model in ("a", "b") for part in (1, 2, 3)
    ]
    rows = [row["run"] for figure in shown["figures"] for row in figure["chart"]["rows"]]
    assert rows == list(range(60))
    assert len({figure["chart"]["longestBytes"] for figure in shown["figures"][:3]}) == 1


def test_only_components_with_bytes_are_shown_the_unknown_ones_last() -> None:
    record = sample_record()
    assert record.prediction is not None
    components = {"zeta": 5, "weights": 7, "gradients": 0, "logits": 1}
    changed = msgspec.structs.replace(record.prediction.memory, components=components)
    prediction = msgspec.structs.replace(record.prediction, memory=changed)
    shown = memory(runs_of(msgspec.structs.replace(record, prediction=prediction, measurement=None, outcome="error")))
    assert shown is not None
    assert [item["key"] for item in shown["legend"]] == ["weights", "logits", "zeta"]


def test_curves_of_one_method_differ_in_their_strokes() -> None:
    shown = losses(runs_of(*[sample_record(method=method, rank=r) for method in ("lora", "qlora") for r in (1, 2, 3)]))
    assert shown is not None
    strokes = [(curve["method"], curve["dash"]) for curve in shown["figures"][0]["chart"]["curves"]]
    assert len(set(strokes)) == 6


def test_sections_without_anything_to_show_are_left_out() -> None:
    [failed] = runs_of(msgspec.structs.replace(sample_record(outcome="error"), prediction=None))
    shown = {section.name for section in SECTIONS if section.data([failed]) is not None}
    assert shown == {"summary", "failures", "environments", "records"}
    assert losses(runs_of(sample_record(losses=[None, None]))) is None
    assert throughput(runs_of(sample_record(step_seconds=[0.0]))) is None


def test_each_shared_fact_is_stored_once_and_nothing_is_lost() -> None:
    kept = [sample_record(rank=rank, outcome=outcome) for rank, outcome in ((1, "ok"), (2, "ok"), (3, "oom"))]  # type: ignore[arg-type]
    store = msgspec.json.decode(msgspec.json.encode(records(runs_of(*kept))["store"]))
    assert {field: len(values) for field, values in store["shared"].items()} == {
        "model_config": 1,
        "device": 1,
        "environment": 1,
        "traceback": 1,
        "parameters": 3,
    }

    def whole(holder: dict[str, Any]) -> dict[str, Any]:
        return {
            field: store["shared"][field][value]
            if field in store["shared"]
            else whole(value)
            if field in ("prediction", "measurement") and value
            else value
            for field, value in holder.items()
        }

    assert [whole(record) for record in store["records"]] == [
        msgspec.json.decode(msgspec.json.encode(record)) for record in kept
    ]
