from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabench.bench.records.record import write_record
from lorabench.reports.runs import arrange, read_runs, varying_settings
from tests.sample_records import MODEL_CONFIG, as_rehearsed, sample_record

MIB = 2**20
FULL: dict[str, Any] = {"method": "full"}
LORA: dict[str, Any] = {"method": "lora"}
QLORA: dict[str, Any] = {"method": "qlora"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([LORA], ["lora r16"]),
        ([QLORA, LORA, FULL], ["full", "lora r16", "qlora r16"]),
        ([{"rank": 32}, {"rank": 8}], ["lora r8", "lora r32"]),
        ([{"batch_size": 4}, {"batch_size": 1}], ["lora r16 · 1×256", "lora r16 · 4×256"]),
        (
            [{}, {"rank": 8}, {"gradient_checkpointing": False}],
            ["lora r8", "lora r16", "lora r16 · no checkpointing"],
        ),
        ([{}, {"rank": 8}, {"optim": "sgd"}], ["lora r8", "lora r16", "lora r16 · optim sgd"]),
        ([{}, {"suite": "night"}], ["lora r16 · demo", "lora r16 · night"]),
        ([{}, {"device_name": "B"}], ["lora r16 · B", "lora r16 · Example CPU @ 2.50GHz"]),
    ],
)
def test_a_run_is_named_by_what_sets_it_apart(options: list[dict[str, Any]], names: list[str]) -> None:
    runs = arrange({"results": [sample_record(**given) for given in options]})
    assert sorted(run.name for run in runs) == sorted(names)


def test_no_two_runs_of_a_model_share_a_name() -> None:
    wider = {**MODEL_CONFIG, "hidden_size": 256}
    records = [sample_record(), sample_record(), sample_record(model_config=wider), sample_record(started_at="later")]
    names = [run.name for run in arrange({"a": records, "b": records})]
    assert len(set(names)) == len(names) == 8


def test_runs_come_in_reading_order() -> None:
    options: list[dict[str, Any]] = [
        {"model": "b"},
        {"method": "qlora", "rank": 4},
        {"rank": 100},
        {"rank": 9, "seq_len": 512},
        {"rank": 9},
        FULL,
    ]
    runs = arrange({"results": [sample_record(**{"model": "A", **given}) for given in options]})
    order = [(run.model, run.method, run.record.recipe.rank, run.record.recipe.seq_len) for run in runs]
    assert order == [
        ("A", "full", None, 256),
        ("A", "lora", 9, 256),
        ("A", "lora", 9, 512),
        ("A", "lora", 100, 256),
        ("A", "qlora", 4, 256),
        ("b", "lora", 16, 256),
    ]
    assert [run.index for run in runs] == list(range(6))


def test_a_setting_that_only_some_methods_have_does_not_vary() -> None:
    runs = arrange({"results": [sample_record(**method) for method in (FULL, LORA, QLORA)]})
    assert varying_settings(runs) == ["method", "dtype"]


def test_throughput_is_at_the_median_step_within_its_interval() -> None:
    [run] = arrange({"results": [sample_record(batch_size=2, seq_len=100, step_seconds=(1.0, 2.0, 4.0, 5.0, 8.0))]})
    assert run.tokens_per_second == 200 / 4.0
    assert run.tokens_per_second_interval == (200 / 8.0, 200 / 1.0)


def test_one_timed_step_has_no_interval() -> None:
    [run] = arrange({"results": [sample_record(step_seconds=(0.5,))]})
    assert run.tokens_per_second == 2 * 256
    assert run.tokens_per_second_interval is None


def test_the_peak_error_is_estimated_less_measured() -> None:
    [run] = arrange({"r": [sample_record(predicted_peak_bytes=105 * 2**20, peak_allocated_bytes=100 * 2**20)]})
    assert run.peak_error == pytest.approx(0.05)


def test_folders_are_told_apart_and_none_counts_twice(tmp_path: Path) -> None:
    for place in ("old/results", "new/results", "third"):
        write_record(tmp_path / place, sample_record())
    folders = [tmp_path / "old/results", tmp_path / "new/results", tmp_path / "third"]
    runs = read_runs([*folders, tmp_path / "third", tmp_path / "new" / ".." / "third"])
    assert [(run.folder_number, run.folder) for run in runs] == [(0, "old/results"), (1, "new/results"), (2, "third")]
    assert {run.folder for run in read_runs(folders[:1])} == {"results"}


def test_a_rehearsal_stands_beside_the_measurement_of_its_recipe_on_such_a_gpu() -> None:
    measured = sample_record(backend="cuda", peak_allocated_bytes=100 * MIB)
    rehearsed = as_rehearsed(sample_record(backend="cuda", peak_allocated_bytes=99 * MIB))
    [run] = arrange({"measured": [measured], "rehearsed": [rehearsed]})
    assert (run.record, run.rehearsal) == (measured, rehearsed.rehearsal)
    assert (run.measured_peak_bytes, run.rehearsed_peak_bytes) == (100 * MIB, 99 * MIB)
    elsewhere = as_rehearsed(sample_record(backend="cuda", device_name="Another GPU"))
    ran_out = as_rehearsed(sample_record(backend="cuda", outcome="oom"))
    assert len(arrange({"measured": [measured], "rehearsed": [elsewhere, ran_out]})) == 3
    [alone] = arrange({"rehearsed": [rehearsed]})
    assert (alone.measured_peak_bytes, alone.rehearsed_peak_bytes) == (None, 99 * MIB)
    assert (alone.timed, alone.final_loss, alone.peak_error) == (None, None, None)
