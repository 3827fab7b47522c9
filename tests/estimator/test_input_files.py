"""Files that block, never end or are not what they should be are refused in one line, and nothing waits for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabench.bench.machine.gpu_probe import read_answers
from lorabench.bench.records.record import read_record
from lorabench.bench.records.results import open_results
from lorabench.bench.suites.suite_file import load_suite
from lorabench.bench.training.text import file_documents
from lorabench.estimator.errors import UserError
from lorabench.estimator.input_files import decode_json, open_input, read_input
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.speed.calibrations import read_calibration

READERS: dict[str, Callable[[Path], object]] = {
    "model": find_model,
    "suite": lambda path: load_suite(str(path)),
    "record": read_record,
    "calibration": read_calibration,
    "dataset": lambda path: list(file_documents(path)),
    "probe": read_answers,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused_by_every_reader(tmp_path: Path, reader: str) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"pipe\.yaml: a pipe or a device, not a file: write its content to a file"):
        READERS[reader](pipe)


@pytest.mark.parametrize("reader", READERS)
def test_a_device_is_refused_through_a_link_too(tmp_path: Path, reader: str) -> None:
    link = tmp_path / "zeros.json"
    link.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"zeros\.json: a pipe or a device"):
        READERS[reader](link)


def test_a_suite_whose_model_is_a_pipe_is_refused_with_its_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "suite.yaml").write_text(f"matrix:\n  model: [{tmp_path}/config.json]\n")
    with pytest.raises(UserError, match=r"suite\.yaml line 2: .*config\.json: a pipe or a device"):
        load_suite(str(tmp_path / "suite.yaml"))


def test_a_pipe_among_the_records_of_a_run_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.record.json")
    with pytest.raises(UserError, match=r"a\.record\.json: a pipe or a device"), open_results(tmp_path, "smoke"):
        pass
    assert (tmp_path / "a.record.json").is_fifo()


def test_a_pipe_is_not_opened_so_its_writer_keeps_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError):
        open_input(pipe)
    with pytest.raises(OSError, match="No such device or address"):  # nobody reads
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_input(tmp_path)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"x" * 2**20)
    assert read_input(path, "a suite", 2**20) == b"x" * 2**20
    path.write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(UserError, match=r"a\.yaml: not a suite: larger than 1 MiB"):
        read_input(path, "a suite", 2**20)


@pytest.mark.parametrize("reader", ["model", "record", "calibration"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfe{}", "not UTF-8 text"), (b'{"a": "\xff"}', "not UTF-8 text"), (b"[" * 100_000, "nested too deeply")],
)
def test_bad_json_is_refused_with_a_short_reason(tmp_path: Path, reader: str, content: bytes, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        READERS[reader](path)


def test_json_is_decoded() -> None:
    assert decode_json('{"é": [1, 2.5, null]}'.encode()) == {"é": [1, 2.5, None]}
    with pytest.raises(ValueError, match="malformed"):
        decode_json(b"{]")
