"""What a rehearsal says of its progress, from the files that the null GPU and its processes write."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lorabench.bench.rehearsing.result import read_launches
from lorabench.cli.rehearsal_progress import StageLines

GIB = 2**30


def ledger(*taken: int) -> bytes:
    """A process id, a card and bytes, in the order and alignment of C, for each process; then room for more."""
    return b"".join(struct.pack("=iiQ", 100 + card, card, bytes_) for card, bytes_ in enumerate(taken)) + bytes(160)


def said(line: str) -> str:
    return line.removeprefix("\r\x1b[K")


def test_a_stage_is_said_once_with_what_all_processes_have_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    say = StageLines(tmp_path, steps=2)
    say()
    (tmp_path / "stage.7").write_text("loading")
    (tmp_path / "ledger").write_bytes(ledger(3 * GIB, GIB))
    say()
    say()
    for stage in ("step 1", "step 2", "step 3"):
        (tmp_path / "stage.7").write_text(stage)
        say()
    lines = [said(line) for line in capsys.readouterr().err.split("\n")[:-1]]
    assert lines == [
        "lorabench: starting, 0.0 MiB reserved, 1 s",
        "lorabench: loading, 4.00 GiB reserved, 1 s",
        "lorabench: step 1 of 2, 4.00 GiB reserved, 1 s",
        "lorabench: step 2 of 2, 4.00 GiB reserved, 1 s",
        "lorabench: ending, 4.00 GiB reserved, 1 s",
    ]


def test_nothing_is_said_unless_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StageLines(tmp_path)()
    assert capsys.readouterr().err == ""


def test_launches_of_all_processes_are_added(tmp_path: Path) -> None:
    (tmp_path / "launches.1").write_text("2\tvoid fill<int>(int*, int)\n1\tmul\n")
    (tmp_path / "launches.2").write_text("5\tmul\n3")  # ended while it wrote
    assert read_launches(tmp_path) == {"mul": 6, "void fill<int>(int*, int)": 2}
