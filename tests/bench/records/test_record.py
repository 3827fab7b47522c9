from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import msgspec
import pytest

from lorabench.bench.records.record import SCHEMA_VERSION, read_record, read_records, write_record
from lorabench.estimator.errors import UserError
from tests.sample_records import as_rehearsed, sample_record


@pytest.mark.parametrize("outcome", ["ok", "oom", "error", "timeout"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_record_comes_back_as_it_was_written(tmp_path: Path, method: str, outcome: str) -> None:
    record = sample_record(method=method, outcome=outcome)  # type: ignore[arg-type]
    path = write_record(tmp_path / "new" / "folder", record)
    assert path.name == f"{record.digest}.record.json"
    assert read_record(path) == record
    assert read_records(path.parent) == [record]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def spoil(path: Path, **changes: object) -> None:
    content = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**content, **changes}))


@pytest.mark.parametrize("outcome", ["ok", "oom"])
def test_a_rehearsed_record_comes_back_without_times_and_losses(tmp_path: Path, outcome: str) -> None:
    record = as_rehearsed(sample_record(backend="cuda", outcome=outcome))  # type: ignore[arg-type]
    path = write_record(tmp_path, record)
    assert read_record(path) == record
    assert not any(word in path.read_text() for word in ("step_seconds", "losses", "joules", "mfu"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rehearsal": None}, "its outcome is ok, but it has no rehearsal"),
        ({"rehearsed": False}, "it was measured, but it has a rehearsal"),
        ({"seconds": 3.0}, "it was rehearsed, but it has times of a measurement"),
        (
            {"measurement": msgspec.to_builtins(sample_record().measurement)},
            "it was rehearsed, but it has times of a measurement",
        ),
    ],
)
def test_a_rehearsed_record_is_not_taken_for_a_measured_one(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = write_record(tmp_path, as_rehearsed(sample_record(backend="cuda")))
    spoil(path, **changes)
    with pytest.raises(UserError, match=complaint):
        read_record(path)


def test_a_second_record_of_a_recipe_replaces_the_first(tmp_path: Path) -> None:
    write_record(tmp_path, sample_record(outcome="oom"))
    write_record(tmp_path, sample_record())
    assert [record.outcome for record in read_records(tmp_path)] == ["ok"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "record schema"),
        ({"schema_version": "x"}, "not a lorabench run record"),
        ({"outcome": "fine"}, "broken run record"),
        ({"measurement": None}, "its outcome is ok, but it has no measurement"),
        ({"digest": "000000000000"}, "its digest does not match its recipe"),
        ({"recipe": {"model": "x", "method": "full", "rank": 3}}, "broken run record"),
    ],
)
def test_a_record_that_was_changed_is_refused(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    path = write_record(tmp_path, sample_record())
    spoil(path, **changes)
    with pytest.raises(UserError, match=complaint) as refused:
        read_record(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("where", "value"),
    [("memory.peak_allocated_bytes", -1), ("tokens_per_step", 0), ("mfu", -0.3), ("step_seconds", [0.0])],
)
def test_a_record_of_what_nobody_can_measure_is_refused(tmp_path: Path, where: str, value: object) -> None:
    path = write_record(tmp_path, sample_record())
    measurement = msgspec.json.decode(path.read_bytes())["measurement"]
    *folders, name = where.split(".")
    functools.reduce(dict.__getitem__, folders, measurement)[name] = value
    spoil(path, measurement=measurement)
    with pytest.raises(UserError, match=f"broken run record.*{name}"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b'{"a": 1}', b"[" * 100_000])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.record.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a lorabench run record"):
        read_record(path)


def test_a_record_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path, sample_record())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a lorabench run record"):
        read_record(path)


def test_missing_folders_and_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_records(tmp_path / "missing")
    with pytest.raises(UserError, match="no run records"):
        read_records(tmp_path)
    with pytest.raises(UserError, match="cannot read the record"):
        read_record(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the record"):
        write_record(tmp_path / "file", sample_record())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("measurement.memory.peak_allocated_bytes", 10**400, "from 0 to 1152921504606846976"),
        ("prediction.memory.device_total_bytes", 2**61, "from 0 to 1152921504606846976"),
        ("measurement.tokens_per_step", 10**400, "from 1 to 9007199254740992"),
        ("measurement.parameters.total", 10**400, "from 0 to 1152921504606846976"),
        ("device.memory_bytes", 10**400, "from 0 to 1152921504606846976"),
        ("seed", 10**400, "a whole number"),
        ("measurement.step_seconds[0]", 1e308, "from 1e-09 to 1000000000"),
        ("measurement.step_seconds[1]", 5e-324, "from 1e-09 to 1000000000"),
        ("measurement.losses[2]", 1e308, "a number from -3"),
        ("measurement.energy_joules", 10**400, "a number from 0 to"),
        ("prediction.speed.step_seconds", 0.0, "a number from 1e-12"),
    ],
)
def test_numbers_beyond_any_machine_are_refused_with_file_and_field(
    tmp_path: Path, field: str, value: float, said: str
) -> None:
    path = write_record(tmp_path, sample_record())
    content = json.loads(path.read_text())
    if field.startswith("prediction.speed"):
        content["prediction"]["speed"] = {}
    *parents, name = re.findall(r"\w+", field)
    place = functools.reduce(lambda part, key: part[key], parents, content)
    place[int(name) if name.isdecimal() else name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=f"{re.escape(str(path))}: broken run record .*{re.escape(f'{field} must be')}"
    ) as refused:
        read_record(path)
    assert said in str(refused.value)
    assert len(str(refused.value)) < len(str(path)) + 300
