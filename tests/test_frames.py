"""Data frames of comparisons, plans and records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import lorabench
from lorabench.bench.records.record import write_record
from tests.sample_records import sample_record


@pytest.fixture
def pandas() -> Any:
    return pytest.importorskip("pandas")


def test_a_comparison_has_a_line_for_each_estimate(pandas: Any) -> None:
    found = lorabench.compare("smollm2-135m", gpu=["t4", "24GB"], seq_len=512, replay=False)
    frame = found.to_frame()
    assert list(frame["peak_allocated_bytes"]) == [one.memory.peak_allocated_bytes for one in found.estimates]
    assert list(frame["margin_bytes"]) == [one.margin_bytes for one in found.estimates]
    assert frame["rank"].isna().tolist() == [one.recipe.rank is None for one in found.estimates]
    assert frame["tokens_per_second"].isna().tolist() == [one.throughput is None for one in found.estimates]
    assert frame["gradient_checkpointing"].all()
    wide = frame.pivot(index="gpu", columns="method", values="peak_allocated_bytes")
    assert wide.loc["t4", "qlora"] < wide.loc["t4", "full"]


def test_a_plan_has_a_line_for_each_choice(pandas: Any) -> None:
    plan = lorabench.plan("smollm2-135m", gpu="t4", seq_len=512, batch_size=1)
    frame = plan.to_frame()
    assert list(frame["method"]) == [one.recipe.method for one in plan.choices]
    assert list(frame["margin_bytes"]) == [one.margin_bytes for one in plan.choices]


def test_records_have_a_line_each_with_what_was_counted_and_predicted(pandas: Any, tmp_path: Path) -> None:
    record = sample_record()
    write_record(tmp_path, record)
    (line,) = lorabench.read_records(tmp_path).to_frame().to_dict("records")
    assert (line["digest"], line["outcome"], line["method"]) == (record.digest, "ok", record.recipe.method)
    assert record.measurement is not None
    assert line["peak_allocated_bytes"] == record.measurement.memory.peak_allocated_bytes
    assert line["step_seconds"] == pytest.approx(record.measurement.median_step_seconds)
    assert line["loss"] == pytest.approx(record.measurement.losses[-1])


def test_a_missing_pandas_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(lorabench.UserError, match=r"to_frame needs pandas, .*: pip install 'lorabench\[report\]'$"):
        lorabench.compare("smollm2-135m", seq_len=512, replay=False).to_frame()
