from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.bench.compare import compare
from lorabench.bench.records import RunRecord, write_record
from lorabench.cli import main
from lorabench.cli.check_formats import as_github, as_junit, as_markdown, as_text
from lorabench.cli.parameters import Share
from tests.sample_records import LOSSES, STEP_SECONDS, sample_record

SLOW = tuple(1.1 * seconds for seconds in STEP_SECONDS)


def folder(path: Path, *records: RunRecord) -> str:
    for record in records:
        write_record(path, record)
    return str(path)


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["check", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out, err


@pytest.fixture
def baseline(tmp_path: Path) -> str:
    return folder(
        tmp_path / "before",
        sample_record(rank=8, peak_allocated_bytes=32 * 2**20),
        sample_record(method="full", peak_allocated_bytes=64 * 2**20),
    )


@pytest.fixture
def worse(tmp_path: Path) -> str:
    return folder(
        tmp_path / "after",
        sample_record(rank=8, peak_allocated_bytes=48 * 2**20),
        sample_record(method="full", outcome="oom", message="out of memory | 2 GiB\nwanted, 100% of it"),
        sample_record(method="qlora"),
    )


def test_results_against_themselves_pass(baseline: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys, baseline, "--baseline", baseline)
    assert (code, err) == (0, "")
    assert [line.partition("llama-2m ")[2].split()[0] for line in out.splitlines()[2:8]] == 3 * ["full"] + 3 * ["lora"]
    assert out.splitlines()[-1] == "6 same in 2 recipes."


def test_a_regression_fails_and_comes_first(baseline: str, worse: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, worse, "--baseline", baseline)
    assert code == 1
    assert [" ".join(line.split()) for line in out.splitlines()[2:6]] == [
        "regression outcome ok oom llama-2m full 1×256 ckpt",
        "regression peak memory 32.0 MiB 48.0 MiB +50.00% llama-2m lora r8 1×256 ckpt",
        "same tokens/s 626.7 626.7 +0.00% llama-2m lora r8 1×256 ckpt",
        "same final loss 5.1667 5.1667 +0.00% llama-2m lora r8 1×256 ckpt",
    ]
    assert "Only in the results: llama-2m qlora r16 1×256 ckpt\n" in out


def test_nothing_in_common_concludes_nothing(baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = folder(tmp_path / "other", sample_record(rank=2))
    code, out, _ = check(capsys, other, "--baseline", baseline)
    assert code == 3
    assert out.count("Only in the baseline: ") == 2
    assert "no recipe is in both" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--baseline", "nowhere"], "nowhere: no such folder"),
        (["nowhere"], "Missing option '--baseline'"),
        (["a", "--baseline", "b", "--format", "markdwon"], "'markdwon': did you mean markdown?"),
        (["a", "--baseline", "b", "--speed-tolerance", "-3%"], "'-3%' is no share"),
        (["a", "--baseline", "b", "--speed-tolerance", "3"], "write a share such as 3% or 0.03"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_tolerances_are_options(baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = folder(
        tmp_path / "more",
        sample_record(
            rank=8, peak_allocated_bytes=33 * 2**20, step_seconds=SLOW, losses=[1.06 * (loss or 0) for loss in LOSSES]
        ),
    )
    wide = ["--memory-tolerance", "4%", "--speed-tolerance", "0.1", "--loss-tolerance", "7 %"]
    for unset in range(0, 6, 2):
        assert check(capsys, more, "--baseline", baseline, *wide[:unset], *wide[unset + 2 :])[0] == 1
    code, out, _ = check(capsys, more, "--baseline", baseline, *wide)
    assert code == 0
    assert "Tolerances: memory 4%, speed 10%, loss 7%" in out


def test_json_has_every_figure(baseline: str, worse: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, worse, "--baseline", baseline, "--format", "json")
    said = json.loads(out)
    assert code == said["exit_code"] == 1
    assert said["verdict"] == "regression"
    assert said["tolerances"] == {"memory": 0.005, "speed": 0.03, "loss": 0.05}
    full, lora = said["recipes"]
    assert full["recipe"]["method"] == "full"
    assert lora["findings"][0] == {
        "metric": "peak_allocated_bytes",
        "before": 33554432,
        "after": 50331648,
        "change": 0.5,
        "verdict": "regression",
        "p_value": None,
        "reason": None,
    }
    assert [one["label"] for one in said["only_in_results"]] == ["llama-2m qlora r16 1×256 ckpt"]
    assert said["only_in_baseline"] == []


def test_junit_fails_regressions_and_skips_what_is_open(
    baseline: str, worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = check(capsys, worse, "--baseline", baseline, "--format", "junit")
    suite = ElementTree.fromstring(out.encode())
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "5",
        "failures": "2",
        "skipped": "1",
    }
    failures = [(case.get("name"), one.get("message")) for case in suite for one in case.findall("failure")]
    assert failures == [
        ("outcome", "outcome: ok before, oom after: out of memory | 2 GiB wanted, 100% of it"),
        ("peak_allocated_bytes", "peak memory: 32.0 MiB before, 48.0 MiB after (+50.00%)"),
    ]


def test_github_annotations_escape_what_commands_may_not_hold(
    baseline: str, worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = check(capsys, worse, "--baseline", baseline, "--format", "github")
    assert out.splitlines() == [
        "::error title=regression of outcome::llama-2m full 1×256 ckpt: outcome: ok before, oom after: "
        "out of memory | 2 GiB wanted, 100%25 of it",
        "::error title=regression of peak memory::llama-2m lora r8 1×256 ckpt: "
        "peak memory: 32.0 MiB before, 48.0 MiB after (+50.00%25)",
        "::warning title=only in the results::llama-2m qlora r16 1×256 ckpt",
        "2 regressions, 2 same in 2 recipes.",
    ]


def test_markdown_is_one_table(baseline: str, worse: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = check(capsys, worse, "--baseline", baseline, "--format", "markdown")
    lines = out.splitlines()
    assert lines[0] == "### lorabench check: 2 regressions, 2 same in 2 recipes."
    assert lines[4] == "| ❌ regression | outcome | ok | oom |  | llama-2m full 1×256 ckpt |"
    assert r"- llama-2m full 1×256 ckpt: outcome: out of memory \| 2 GiB wanted, 100% of it" in lines
    assert len({line.replace(r"\|", "").count("|") for line in lines if line.startswith("|")}) == 1


@given(st.text(), st.text())
def test_foreign_names_and_messages_stay_inside_every_format(model: str, message: str) -> None:
    before, after = sample_record(model=model), sample_record(model=model, outcome="error", message=message)
    comparison = compare([after], [before])
    suite = ElementTree.fromstring(as_junit(comparison).encode())
    assert suite[0].get("classname") == comparison.recipes[0].label
    assert len(as_github(comparison).split("\n")) == len(as_github(comparison).splitlines()) == 2
    assert all(len(line) <= 80 for line in as_text(comparison, 80).splitlines()) or not model.isascii()
    for text in (as_markdown(comparison), as_text(comparison)):
        assert all(line.isprintable() for line in text.split("\n"))


def test_no_format_loses_the_end_of_a_long_name(baseline: str) -> None:
    record = sample_record(model="m" * 300)
    comparison = compare([record], [record])
    assert "m" * 300 in as_text(comparison)
    assert as_text(comparison, 80).count("m") >= 900
    assert max(map(len, as_text(comparison, 80).splitlines())) <= 80


@pytest.mark.parametrize(
    ("written", "share"),
    [("3%", 0.03), ("0.5%", 0.005), (" 3 % ", 0.03), ("0.03", 0.03), (".5", 0.5), ("0", 0.0), ("5e-3", 0.005)],
)
def test_shares_are_read(written: str, share: float) -> None:
    assert Share().convert(written, None, None) == pytest.approx(share, abs=0)


@given(st.floats(0, 99.9))
def test_percent_and_share_mean_the_same(percent: float) -> None:
    assert Share().convert(f"{percent!r}%", None, None) == pytest.approx(percent / 100, rel=1e-15, abs=0)
    assert Share().convert(repr(percent / 100), None, None) == percent / 100


def test_it_says_what_to_install_without_scipy(baseline: str) -> None:
    without = "import sys; sys.modules['scipy'] = sys.modules['scipy.stats'] = None; "
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            without + "from lorabench.cli import main; main()",
            "check",
            baseline,
            "--baseline",
            baseline,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "lorabench: check needs scipy, which is missing: pip install 'lorabench[check]'\n"


def test_an_edited_record_is_refused(baseline: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(Path(baseline).iterdir())
    record: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    record["recipe"]["seq_len"] += 1
    path.write_bytes(msgspec.json.encode(record))
    code, _, err = check(capsys, baseline, "--baseline", baseline)
    assert (code, err.count(os.linesep)) == (2, 1)
    assert str(path) in err
