from __future__ import annotations

import fcntl
import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import SCHEMA_VERSION, read_record, read_records, write_record
from lorabench.bench.records.results import open_results
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.recipe import digest_of
from tests.sample_records import sample_record


def test_a_record_replaces_the_one_of_its_key_under_whatever_name(tmp_path: Path) -> None:
    record = sample_record(suite="demo", outcome="timeout")
    write_record(tmp_path, record).rename(tmp_path / "named-by-an-older-version.record.json")
    with open_results(tmp_path, "demo") as results:
        assert results.records == {record.key: record}
        results.write(sample_record(suite="demo"))
    assert [path.name for path in tmp_path.iterdir()] == [record.file_name]
    assert read_records(tmp_path) == [sample_record(suite="demo")]


def test_records_of_other_engines_and_repeats_stand_beside_each_other(tmp_path: Path) -> None:
    plain = sample_record(suite="demo")
    records = [
        plain,
        msgspec.structs.replace(plain, repeat=1, seed=1),
        msgspec.structs.replace(plain, engine="trainer"),
        msgspec.structs.replace(plain, engine="trainer", repeat=1, seed=1),
    ]
    with open_results(tmp_path, "demo") as results:
        for record in records:
            results.write(record)
    assert len(read_records(tmp_path)) == 4
    with open_results(tmp_path, "demo") as results:
        assert results.records == {record.key: record for record in records}


def test_a_record_of_a_newer_schema_is_never_set_aside(tmp_path: Path) -> None:
    path = write_record(tmp_path, sample_record(suite="demo"))
    path.write_bytes(path.read_bytes().replace(b'"schema_version": %d' % SCHEMA_VERSION, b'"schema_version": 99'))
    assert SCHEMA_VERSION < 99
    with pytest.raises(UserError, match="record schema 99"), open_results(tmp_path, "demo"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_where_a_record_cannot_be_read_nothing_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "x.record.json").mkdir()
    (tmp_path / "broken.record.json").touch()
    with (
        pytest.raises(UserError, match="cannot read the record: Is a directory: make it"),
        open_results(tmp_path, "demo"),
    ):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.record.json", "x.record.json"]


@pytest.mark.parametrize("folder", ["file", "file/out"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match="name another folder with -o") as refused,
        open_results(tmp_path / folder, "demo"),
    ):
        pass
    assert folder in str(refused.value)


def test_a_disk_without_room_for_a_record_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write there: File too large"), open_results(tmp_path, "demo"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_no_reason_not_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with open_results(tmp_path, "demo") as results:
        results.write(sample_record(suite="demo"))
    assert len(read_records(tmp_path)) == 1


# Records of older schemas.


def as_schema_2(path: Path, **changes: object) -> None:
    """Rewrite a record as schema 2 had it: the recipe flat, null where a setting has no meaning."""
    content = msgspec.json.decode(path.read_bytes())
    content["recipe"] = dict.fromkeys(SETTINGS_OF_SCHEMA_2) | read_record(path).recipe.settings()
    path.write_bytes(msgspec.json.encode({**content, "schema_version": 2, **changes}))


SETTINGS_OF_SCHEMA_2 = (
    *("model", "method", "rank", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "adapter_dtype"),
    *("dtype", "mixed_precision", "quant_type", "double_quant", "prepare_kbit", "optim", "batch_size", "seq_len"),
    *("gradient_accumulation", "gradient_checkpointing", "attn_implementation", "loss"),
)


def as_schema_1(path: Path, **changes: object) -> None:
    """Rewrite a record as version 0.1.0 wrote it: without what schema 2 added."""
    as_schema_2(path)
    content = msgspec.json.decode(path.read_bytes())
    added = ("engine", "repeat", "steps", "warmup_steps", "out_of", "dataset_digest")
    content = {key: value for key, value in content.items() if key not in added}
    if content["measurement"]:
        first = ("parameters", "memory", "step_seconds", "warmup_step_seconds", "tokens_per_step", "losses")
        content["measurement"] = {key: content["measurement"][key] for key in first}
    path.write_bytes(msgspec.json.encode({**content, "schema_version": 1, **changes}))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full"},
        {"method": "lora", "rank": 4, "target_modules": "q_proj,v_proj", "modules_to_save": "lm_head"},
        {"method": "qlora", "double_quant": False, "lora_dropout": 0.0},
    ],
)
def test_a_record_of_schema_2_is_read_as_one_of_today(tmp_path: Path, options: dict[str, Any]) -> None:
    record = sample_record(**options)
    path = write_record(tmp_path, record)
    as_schema_2(path)
    assert read_record(path) == record
    with open_results(tmp_path, "demo") as results:  # as --resume finds it
        assert list(results.records) == [record.key]


EXAMPLES = sorted((Path(__file__).parents[3] / "docs" / "examples" / "check").glob("*/*.record.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_record_keeps_its_digest_its_settings_and_its_figures(path: Path) -> None:
    written = msgspec.json.decode(path.read_bytes())
    assert written["schema_version"] < SCHEMA_VERSION
    record = read_record(path)
    assert (record.digest, record.file_name) == (written["digest"], path.name)
    assert record.recipe.settings() == {name: value for name, value in written["recipe"].items() if value is not None}
    assert record.measurement == msgspec.convert(written["measurement"], Measurement | None)


def test_an_old_record_of_a_recipe_that_cannot_be_is_set_aside(tmp_path: Path) -> None:
    path = write_record(tmp_path, sample_record())
    as_schema_2(path, recipe={"model": "x", "method": "full", "rank": 3})
    with pytest.raises(UserError, match=r"broken run record.*rank does not apply to method full"):
        read_record(path)


def test_a_record_of_schema_1_is_read_as_one_of_today(tmp_path: Path) -> None:
    record = sample_record()
    path = write_record(tmp_path, record)
    as_schema_1(path)
    assert read_record(path) == msgspec.structs.replace(record, steps=10, warmup_steps=2)


@pytest.mark.parametrize(
    ("message", "out_of"),
    [("killed by the kernel, as it does when memory runs out", "killed"), ("CUDA out of memory.", None)],
)
def test_schema_1_told_only_one_shortage_of_memory_apart(tmp_path: Path, message: str, out_of: str | None) -> None:
    path = write_record(tmp_path, sample_record(outcome="oom", message=message))
    as_schema_1(path)
    assert read_record(path).out_of == out_of


def test_a_record_from_before_a_recipe_option_has_the_digest_of_today(tmp_path: Path) -> None:
    record = sample_record()
    path = write_record(tmp_path, record)
    as_schema_2(path)
    content = msgspec.json.decode(path.read_bytes())
    del content["recipe"]["loss"]  # as if this option were new; its default is what the record was trained with
    before = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(UserError, match="its digest does not match its recipe"):
        read_record(path)
    content["digest"] = digest_of(content["recipe"], content["model_config"])
    assert content["digest"] != before["digest"]
    path.write_bytes(msgspec.json.encode(content))
    assert read_record(path) == record
