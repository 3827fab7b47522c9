"""Wrong use and bad input: one line, exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--baseline", "nowhere"], "nowhere: no such folder"),
        (["nowhere"], "pass either --baseline BASELINE_DIR or --against-estimate"),
        (["a", "--baseline", "b", "--against-estimate"], "pass either --baseline BASELINE_DIR or --against-estimate"),
        (["a", "--baseline", "b", "--tolerance", "3%"], "--tolerance does not apply to --baseline"),
        (
            ["a", "--against-estimate", "--speed-tolerance", "3%"],
            "--speed-tolerance does not apply to --against-estimate",
        ),
        (["a", "--against-estimate", "--update-baseline"], "--update-baseline does not apply to --against-estimate"),
        (["a", "--baseline", "b", "--across-devices", "--update-baseline"], "a baseline holds one device"),
        (["a", "--baseline", "b", "--format", "markdwon"], "'markdwon': did you mean markdown?"),
        (["a", "--baseline", "b", "--speed-tolerance", "-3%"], "'-3%' is not a share"),
        (["a", "--baseline", "b", "--speed-tolerance", "3"], "write a share such as 3% or 0.03, or off"),
        (["a", "--baseline", "b", "--suite", "smok"], "smok: no such suite"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, check: Any) -> None:
    code, out, err = check(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a lorabench run record"),
        (b'{"schema_version": 2, "digest": "12', "not a lorabench run record"),
        (b'{"name": "somebody else\'s"}', "not a lorabench run record"),
        (b'{"schema_version": 99}', "record schema 99, but this lorabench reads"),
    ],
)
def test_a_half_written_or_foreign_record_is_named(
    content: bytes, said: str, baseline: str, tmp_path: Path, check: Any
) -> None:
    path = tmp_path / "after" / "0.record.json"
    path.parent.mkdir()
    path.write_bytes(content)
    code, out, err = check(str(path.parent), "--baseline", baseline)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(path) in err
    assert said in err


def test_an_edited_record_is_refused(baseline: str, check: Any) -> None:
    path = next(Path(baseline).iterdir())
    content: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    content["recipe"]["seq_len"] += 1
    path.write_bytes(msgspec.json.encode(content))
    code, _, err = check(baseline, "--baseline", baseline)
    assert (code, err.count(os.linesep)) == (2, 1)
    assert str(path) in err


def test_a_folder_without_records_is_refused(baseline: str, tmp_path: Path, check: Any) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = check(str(tmp_path / "empty"), "--baseline", baseline)
    assert (code, err.count("\n")) == (2, 1)
    assert "no run records" in err


def test_it_says_what_to_install_without_scipy(baseline: str, all_worse: str) -> None:
    without = "import sys; sys.modules['scipy'] = sys.modules['scipy.stats'] = None; "
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            without + "from lorabench.cli import main; main()",
            "check",
            all_worse,
            "--baseline",
            baseline,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "lorabench: check needs scipy, which is not installed: pip install 'lorabench[check]'\n"
