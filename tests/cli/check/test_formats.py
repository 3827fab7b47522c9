"""Each format, as its readers take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lorabench.bench.check.baseline import compare
from lorabench.cli.check_formats import as_github, as_junit, as_markdown, as_text, json_schema
from tests.bench.check.records import folder, record
from tests.sample_records import as_rehearsed

ROOT = Path(__file__).parents[3]


def test_json_has_every_figure_and_keeps_to_its_schema(baseline: str, worse: str, check: Any) -> None:
    code, out, _ = check(worse, "--baseline", baseline, "--format", "json")
    said = json.loads(out)
    assert code == said["exit_code"] == 1
    assert said["schema_version"] == 1
    assert (said["against"], said["verdict"]) == ("baseline", "regression")
    assert said["thresholds"]["memory"] == 0.005
    full, lora = said["recipes"]
    assert (full["recipe"]["method"], full["runs"]) == ("full", [2, 1])
    assert lora["findings"][0] == {
        "metric": "peak_allocated_bytes",
        "phase": None,
        "before": 33554432,
        "after": 50331648,
        "change": 0.5,
        "interval": None,
        "p_value": None,
        "verdict": "regression",
        "reason": None,
        "allowed": None,
    }
    assert [one["label"] for one in said["only_in_results"]] == ["llama-2m qlora r16 1×256 ckpt"]
    assert said["only_in_baseline"] == []
    schema = json.loads((ROOT / "docs/check.schema.json").read_text())
    assert schema == json_schema()
    assert set(said) == set(schema["$defs"]["CheckAnswer"]["properties"])


def valid_junit(text: str) -> ElementTree.Element:
    """Hold ``text`` to what the readers of JUnit XML agree on (Jenkins, GitLab, GitHub's actions)."""
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    [suite] = root
    assert suite.tag == "testsuite"
    assert suite.get("name")
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for case in suite:
        assert case.tag == "testcase"
        assert case.get("name")
        assert case.get("classname")
        counts["tests"] += 1
        assert len(case) <= 1
        for result in case:
            assert result.get("message")
            counts[{"failure": "failures", "skipped": "skipped"}[result.tag]] += 1
    for element in (root, suite):
        assert {key: element.get(key) for key in counts} == {key: str(count) for key, count in counts.items()}
    return suite


def test_junit_fails_regressions_and_skips_what_is_open(baseline: str, worse: str, check: Any) -> None:
    _, out, _ = check(worse, "--baseline", baseline, "--format", "junit")
    suite = valid_junit(out)
    assert [suite.get(key) for key in ("tests", "failures", "skipped")] == ["5", "2", "1"]
    failures = [(case.get("name"), one.get("message")) for case in suite for one in case.findall("failure")]
    assert failures == [
        ("outcome", "outcome: ok to oom: out of memory | 2 GiB wanted, 100% of it"),
        ("peak_allocated_bytes", "peak memory: 32.0 MiB to 48.0 MiB (+50.00%)"),
    ]


def test_github_annotations_escape_what_commands_may_not_hold(baseline: str, worse: str, check: Any) -> None:
    _, out, _ = check(worse, "--baseline", baseline, "--format", "github")
    assert out.splitlines() == [
        "::error title=regression of outcome::llama-2m full 1×256 ckpt: outcome: ok to oom: "
        "out of memory | 2 GiB wanted, 100%25 of it",
        "::error title=regression of peak memory::llama-2m lora r8 1×256 ckpt: "
        "peak memory: 32.0 MiB to 48.0 MiB (+50.00%25)",
        "::warning title=only in the results::llama-2m qlora r16 1×256 ckpt",
        "2 regressions, 2 same in 2 recipes.",
    ]


def test_markdown_is_one_table(baseline: str, worse: str, check: Any) -> None:
    _, out, _ = check(worse, "--baseline", baseline, "--format", "markdown")
    lines = out.splitlines()
    assert lines[0] == "### lorabench check: 2 regressions, 2 same in 2 recipes."
    assert lines[4] == "| ❌ regression | outcome | ok | oom |  |  | llama-2m full 1×256 ckpt |"
    assert r"- llama-2m full 1×256 ckpt: outcome: out of memory \| 2 GiB wanted, 100% of it" in lines
    assert len({line.replace(r"\|", "").count("|") for line in lines if line.startswith("|")}) == 1


@given(st.text(), st.text())
def test_foreign_names_and_messages_stay_inside_every_format(model: str, message: str) -> None:
    before, after = record(model=model), record(model=model, outcome="error", message=message)
    comparison = compare([after], [before])
    assert valid_junit(as_junit(comparison))[0].get("classname") == comparison.recipes[0].label
    assert len(as_github(comparison).split("\n")) == len(as_github(comparison).splitlines()) == 2
    for text in (as_markdown(comparison), as_text(comparison)):
        assert all(line.isprintable() for line in text.split("\n"))


def test_lines_keep_to_80_columns_whatever_the_names(baseline: str) -> None:
    one = record(
        model="m" * 300,
        backend="cuda",
        nvml=20 * 2**30,
        peak_allocated_bytes=19 * 2**30,
        losses=[1e30] * 12,
    )
    slower = msgspec.structs.replace(one, started_at="2026-03-15T00:00:00Z")
    text = as_text(compare([slower], [one]))
    assert [len(line) for line in text.splitlines() if "m" * 300 in line] == [len(slower.recipe.label())]
    assert max(len(line) for line in text.splitlines() if "m" * 300 not in line) <= 80


def test_rehearsals_against_the_estimate_are_called_so_in_80_columns(tmp_path: Path, check: Any) -> None:
    rehearsed = [as_rehearsed(record(backend="cuda", method=method)) for method in ("full", "lora")]
    code, out, _ = check(folder(tmp_path / "rehearsed", *rehearsed), "--against-estimate", "--tolerance", "off")
    head, *rows = out.splitlines()
    assert head.split() == ["verdict", "metric", "estimated", "rehearsed", "off", "by", "allowed"]
    assert code in (0, 1)
    assert max(map(len, rows)) <= 80
    text = " ".join(out.split())
    assert "Device: NVIDIA Example 24GB, rehearsed on null GPUs: nothing was measured" in text
    assert not any(word in out for word in ("step time", "loss", "nvidia-smi"))
    _, out, _ = check(str(tmp_path / "rehearsed"), "--against-estimate", "--format", "json")
    assert json.loads(out)["rehearsed"] is True
