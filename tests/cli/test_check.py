from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.bench.check import adoption
from lorabench.bench.check.baseline import compare
from lorabench.bench.records.record import RunRecord, read_records, write_record
from lorabench.bench.suites.suite_file import load_suite
from lorabench.cli import main
from lorabench.cli.check_formats import as_github, as_junit, as_markdown, as_text, json_schema
from lorabench.cli.parameters import Share
from lorabench.estimator.errors import UserError
from tests.bench.check.records import record, repeats, steady, times
from tests.sample_records import LOSSES

ROOT = Path(__file__).parents[2]
MIB = 2**20


def folder(path: Path, *records: RunRecord) -> str:
    for one in records:
        write_record(path, one)
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
        *repeats(2, rank=8, peak_allocated_bytes=32 * MIB),
        *repeats(2, method="full", peak_allocated_bytes=64 * MIB),
    )


@pytest.fixture
def worse(tmp_path: Path) -> str:
    return folder(
        tmp_path / "after",
        record(rank=8, peak_allocated_bytes=48 * MIB),
        record(method="full", outcome="oom", message="out of memory | 2 GiB\nwanted, 100% of it"),
        record(method="qlora"),
    )


def test_results_against_themselves_pass(baseline: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys, baseline, "--baseline", baseline)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "6 same in 2 recipes."


def test_a_regression_fails_and_comes_first(baseline: str, worse: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, worse, "--baseline", baseline)
    assert code == 1
    assert [" ".join(line.split()) for line in out.splitlines()[1:8]] == [
        "llama-2m full 1×256 ckpt (2 and 1 runs)",
        "regression outcome ok oom",
        "out of memory | 2 GiB wanted, 100% of it",
        "llama-2m lora r8 1×256 ckpt (2 and 1 runs)",
        "regression peak memory 32.0 MiB 48.0 MiB +50.00%",
        "same step time 408.5 ms 408.5 ms +0.00% -1.0% to +1.0%",
        "same loss, last ¼ 5.1667 5.1667 +0.00% +0.0% to +0.0%",
    ]
    assert "Only in the results: llama-2m qlora r16 1×256 ckpt\n" in out
    assert max(map(len, out.splitlines())) <= 120


def test_what_is_open_is_no_pass(tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]) -> None:
    unsteady = folder(tmp_path / "x", record(rank=8, peak_allocated_bytes=32 * MIB, unstable=("GPU shared",)))
    code, out, _ = check(capsys, unsteady, "--baseline", baseline)
    assert code == 3
    assert "unstable after: GPU shared" in out
    assert out.splitlines()[-1] == "Not all could be concluded: 1 insufficient, 2 same in 1 recipe."


def test_nothing_in_common_concludes_nothing(baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = folder(tmp_path / "other", record(rank=2))
    code, out, _ = check(capsys, other, "--baseline", baseline)
    assert code == 3
    assert out.count("Only in the baseline: ") == 2
    assert "no recipe is in both" in out


def test_it_is_said_where_all_recipes_are_slower() -> None:
    before = [one for rank in (4, 8) for one in steady(rank=rank)]
    one, both = (
        [*steady(1.1, rank=4), *steady(1.001, rank=8)],
        [one for rank in (4, 8) for one in steady(1.1, rank=rank)],
    )
    told = "All recipes are slower: the change, or the machine as a whole"
    assert told in as_text(compare(both, before))
    assert told not in as_text(compare(one, before))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--baseline", "nowhere"], "nowhere: no such folder"),
        (["nowhere"], "give --baseline BASELINE_DIR or --against-estimate"),
        (["a", "--baseline", "b", "--against-estimate"], "give --baseline BASELINE_DIR or --against-estimate"),
        (["a", "--baseline", "b", "--tolerance", "3%"], "--tolerance: no meaning with --baseline"),
        (
            ["a", "--against-estimate", "--speed-tolerance", "3%"],
            "--speed-tolerance: no meaning with --against-estimate",
        ),
        (["a", "--against-estimate", "--update-baseline"], "--update-baseline: no meaning with --against-estimate"),
        (["a", "--baseline", "b", "--across-devices", "--update-baseline"], "keeps a baseline to one device"),
        (["a", "--baseline", "b", "--format", "markdwon"], "'markdwon': did you mean markdown?"),
        (["a", "--baseline", "b", "--speed-tolerance", "-3%"], "'-3%' is no share"),
        (["a", "--baseline", "b", "--speed-tolerance", "3"], "write a share such as 3% or 0.03, or off"),
        (["a", "--baseline", "b", "--suite", "smok"], "smok: no such suite"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys, *arguments)
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
    content: bytes, said: str, baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "after" / "0.record.json"
    path.parent.mkdir()
    path.write_bytes(content)
    code, out, err = check(capsys, str(path.parent), "--baseline", baseline)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(path) in err
    assert said in err


def test_an_edited_record_is_refused(baseline: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(Path(baseline).iterdir())
    content: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    content["recipe"]["seq_len"] += 1
    path.write_bytes(msgspec.json.encode(content))
    code, _, err = check(capsys, baseline, "--baseline", baseline)
    assert (code, err.count(os.linesep)) == (2, 1)
    assert str(path) in err


def test_a_folder_without_records_is_refused(baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = check(capsys, str(tmp_path / "empty"), "--baseline", baseline)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no run records" in err


def test_other_devices_are_an_option(tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = folder(tmp_path / "gpu", record(rank=8, peak_allocated_bytes=32 * MIB, device_name="Other CPU"))
    code, _, err = check(capsys, other, "--baseline", baseline)
    assert (code, err.count("\n")) == (2, 1)
    assert "--across-devices" in err
    code, out, _ = check(capsys, other, "--baseline", baseline, "--across-devices")
    assert code == 0
    assert "Device: Example CPU @ 2.50GHz (cpu) → Other CPU (cpu)" in out


@pytest.fixture
def all_worse(tmp_path: Path) -> str:
    """Worse in every metric, and of a recipe with one run a side worse in the loss."""
    losses = [1.06 * (loss or 0) for loss in LOSSES]
    return folder(
        tmp_path / "more",
        *repeats(2, rank=8, peak_allocated_bytes=33 * MIB, step_seconds=times(1.1), losses=losses, nvml=500 * MIB),
        record(rank=4, losses=losses),
    )


WIDE = ["--memory-tolerance", "4%", "--speed-tolerance", "0.11", "--nvml-tolerance", "off"]
WIDE += ["--loss-tolerance", "7 %", "--loss-over-seeds-tolerance", "7%"]


def test_tolerances_are_options(baseline: str, all_worse: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder(Path(baseline), record(rank=8, peak_allocated_bytes=32 * MIB, nvml=400 * MIB), record(rank=4))
    for unset in range(0, len(WIDE), 2):
        assert check(capsys, all_worse, "--baseline", baseline, *WIDE[:unset], *WIDE[unset + 2 :])[0] == 1
    code, out, _ = check(capsys, all_worse, "--baseline", baseline, *WIDE)
    assert code == 0
    assert "Thresholds: memory 4%, reserved 10%, nvml off, speed 11%, loss 7%, loss over\n  seeds 7%\n" in out


def test_tolerances_are_in_the_suite_too_and_options_win(
    baseline: str, all_worse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "defaults: {model: lorabench/demo-llama}\nmatrix: {method: lora}\n"
        "check: {memory: 4%, speed: 0.11, loss: off, loss_over_seeds: off}\n"
    )
    with_suite = ["--baseline", baseline, "--suite", str(suite)]
    code, out, _ = check(capsys, all_worse, *with_suite)
    assert code == 0
    assert "loss, last" not in out
    assert check(capsys, all_worse, *with_suite, "--speed-tolerance", "3%")[0] == 1


@pytest.mark.parametrize(
    ("check_section", "said"),
    [
        ("{speed: fast}", "line 3: speed: 'fast' is no share"),
        ("{speeed: 3%}", "line 3: unknown threshold 'speeed': did you mean speed?"),
        ("[speed]", "line 3: check must be a mapping of thresholds"),
        ("{memory: true}", "line 3: memory: True is no share"),
    ],
)
def test_thresholds_of_a_suite_are_validated(check_section: str, said: str, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"defaults: {{model: lorabench/demo-llama}}\nmatrix: {{method: lora}}\ncheck: {check_section}\n")
    with pytest.raises(UserError, match=said):
        load_suite(str(suite))


# Known cases.


def test_a_known_case_passes_with_its_reason_printed(
    baseline: str, worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = json.loads(check(capsys, worse, "--baseline", baseline, "--format", "json")[1])["recipes"][0]["digest"]
    allowed = [
        "--allow",
        f"{digest}=needs the larger GPU",
        "--allow",
        "llama-2m lora r8 1×256 ckpt:peak_allocated_bytes=a=b",
    ]
    assert check(capsys, worse, "--baseline", baseline, *allowed[:2])[0] == 1
    code, out, _ = check(capsys, worse, "--baseline", baseline, *allowed)
    assert code == 0
    assert "regression, allowed: needs the larger GPU" in out
    assert "regression, allowed: a=b" in out
    assert out.splitlines()[-1] == "2 same, 2 allowed in 2 recipes."


def test_a_known_case_covers_one_metric_or_all(
    baseline: str, all_worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label = "llama-2m lora r8 1×256 ckpt"
    assert check(capsys, all_worse, "--baseline", baseline, "--allow", f"{label}=known")[0] == 0
    assert check(capsys, all_worse, "--baseline", baseline, "--allow", "step_seconds=slower driver")[0] == 1
    code, out, _ = check(capsys, baseline, "--baseline", baseline, "--allow", "step_seconds=slower driver")
    assert code == 0
    assert "Allowed, but it did not come up: step_seconds=slower driver" in out


@pytest.mark.parametrize(
    ("allowance", "said"),
    [
        ("step_secnds=x", "did you mean step_seconds?"),
        ("step_seconds", "give a reason: step_seconds=REASON"),
        ("step_seconds=", "give a reason"),
    ],
)
def test_a_known_case_that_names_nothing_is_refused(
    allowance: str, said: str, baseline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = check(capsys, baseline, "--baseline", baseline, "--allow", allowance)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


# New baselines.


def peaks_in(path: str) -> dict[str, int]:
    return {
        one.recipe.label(): one.measurement.memory.peak_allocated_bytes
        for one in read_records(Path(path))
        if one.measurement is not None
    }


def test_a_first_baseline_is_made_of_the_results(
    tmp_path: Path, worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "deep" / "baseline"
    code, _, err = check(capsys, worse, "--baseline", str(new), "--update-baseline")
    assert (code, err) == (0, f"{new} now holds these results as the baseline\n")
    assert read_records(new) == read_records(Path(worse))
    assert stat.S_IMODE(new.stat().st_mode) & 0o077 == 0o077 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_what_got_worse_becomes_the_baseline_only_where_it_is_allowed(
    tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = folder(tmp_path / "after", record(rank=8, peak_allocated_bytes=48 * MIB), record(rank=4))
    before = {path.name: path.read_bytes() for path in Path(baseline).iterdir()}
    code, _, err = check(capsys, results, "--baseline", baseline, "--update-baseline")
    assert code == 1
    assert "stays as it was" in err
    assert {path.name: path.read_bytes() for path in Path(baseline).iterdir()} == before
    (Path(baseline) / "README").write_text("ours")
    code, _, _ = check(
        capsys, results, "--baseline", baseline, "--update-baseline", "--allow", "peak_allocated_bytes=new kernels"
    )
    assert code == 0
    assert peaks_in(baseline) == {
        "llama-2m full 1×256 ckpt": 64 * MIB,  # in the old baseline only: kept
        "llama-2m lora r8 1×256 ckpt": 48 * MIB,
        "llama-2m lora r4 1×256 ckpt": peaks_in(results)["llama-2m lora r4 1×256 ckpt"],
    }
    assert (Path(baseline) / "README").read_text() == "ours"
    assert "regression, allowed: new kernels" in (Path(baseline) / "review.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_fewer_repeats_leave_none_of_the_old_ones_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = folder(tmp_path / "old", *repeats(3)), folder(tmp_path / "new", *repeats(2))
    assert check(capsys, new, "--baseline", old, "--update-baseline")[0] == 0
    assert [one.repeat for one in read_records(Path(old))] == [0, 1]


def test_what_is_open_does_not_become_the_baseline(
    tmp_path: Path, baseline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = folder(tmp_path / "x", record(rank=8, peak_allocated_bytes=32 * MIB, unstable=("GPU shared",)))
    assert check(capsys, results, "--baseline", baseline, "--update-baseline")[0] == 3
    assert all(not one.measurement.unstable for one in read_records(Path(baseline)) if one.measurement)


def test_a_baseline_that_cannot_be_written_stays_whole(
    tmp_path: Path, baseline: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[Path] = []

    def full_disk(path: Path, one: RunRecord) -> Path:
        if written:
            raise OSError(28, "No space left on device")
        written.append(write_record(path, one))
        return written[0]

    monkeypatch.setattr(adoption, "write_record", full_disk)
    results = folder(tmp_path / "after", record(rank=8, peak_allocated_bytes=31 * MIB), record(rank=4))
    before = {path.name: path.read_bytes() for path in Path(baseline).iterdir()}
    code, _, err = check(capsys, results, "--baseline", baseline, "--update-baseline")
    assert (code, err.count("\n")) == (2, 1)
    assert written
    assert {path.name: path.read_bytes() for path in Path(baseline).iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "before"]


def peaks_now_in(path: Path) -> list[int] | None:
    """Return what the folder of that name holds; None where another took the name while it was read."""
    handle = os.open(path, os.O_RDONLY)
    try:
        names = [name for name in os.listdir(handle) if name.endswith(".record.json")]  # noqa: PTH208
        texts = [_read(name, handle) for name in names]
        if os.fstat(handle).st_ino != path.stat().st_ino:
            return None
    finally:
        os.close(handle)
    return [json.loads(text)["measurement"]["memory"]["peak_allocated_bytes"] // MIB for text in texts if text]


def _read(name: str, folder: int) -> bytes:
    try:
        handle = os.open(name, os.O_RDONLY, dir_fd=folder)
    except FileNotFoundError:
        return b""
    with os.fdopen(handle, "rb") as file:
        return file.read()


def test_a_reader_sees_the_old_baseline_or_the_new_never_a_mixture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [
        folder(tmp_path / str(peak), *(record(rank=rank, peak_allocated_bytes=peak * MIB) for rank in (4, 8, 16)))
        for peak in (30, 20)
    ]
    live = tmp_path / "live"
    folder(live, *read_records(Path(sides[0])))
    options = ["--update-baseline", "--speed-tolerance", "off", "--allow", "peak_allocated_bytes=swap"]
    seen: set[tuple[int, ...] | str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                peaks = peaks_now_in(live)
            except FileNotFoundError:
                seen.add("no such folder")
            else:
                if peaks is not None:
                    seen.add(tuple(peaks))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for turn in range(20):
            check(capsys, sides[(turn + 1) % 2], "--baseline", str(live), *options)
    finally:
        done.set()
        watcher.join()
    assert seen == {(30, 30, 30), (20, 20, 20)}


# Formats.


def test_json_has_every_figure_and_keeps_to_its_schema(
    baseline: str, worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = check(capsys, worse, "--baseline", baseline, "--format", "json")
    said = json.loads(out)
    assert code == said["exit_code"] == 1
    assert said["schema_version"] == 1
    assert (said["against"], said["verdict"]) == ("baseline", "regression")
    assert said["thresholds"]["memory"] == 0.005
    full, lora = said["recipes"]
    assert (full["recipe"]["method"], full["runs"]) == ("full", [2, 1])
    assert lora["findings"][0] == {
        "metric": "peak_allocated_bytes",
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


def test_junit_fails_regressions_and_skips_what_is_open(
    baseline: str, worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = check(capsys, worse, "--baseline", baseline, "--format", "junit")
    suite = valid_junit(out)
    assert [suite.get(key) for key in ("tests", "failures", "skipped")] == ["5", "2", "1"]
    failures = [(case.get("name"), one.get("message")) for case in suite for one in case.findall("failure")]
    assert failures == [
        ("outcome", "outcome: ok to oom: out of memory | 2 GiB wanted, 100% of it"),
        ("peak_allocated_bytes", "peak memory: 32.0 MiB to 48.0 MiB (+50.00%)"),
    ]


def test_github_annotations_escape_what_commands_may_not_hold(
    baseline: str, worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = check(capsys, worse, "--baseline", baseline, "--format", "github")
    assert out.splitlines() == [
        "::error title=regression of outcome::llama-2m full 1×256 ckpt: outcome: ok to oom: "
        "out of memory | 2 GiB wanted, 100%25 of it",
        "::error title=regression of peak memory::llama-2m lora r8 1×256 ckpt: "
        "peak memory: 32.0 MiB to 48.0 MiB (+50.00%25)",
        "::warning title=only in the results::llama-2m qlora r16 1×256 ckpt",
        "2 regressions, 2 same in 2 recipes.",
    ]


def test_markdown_is_one_table(baseline: str, worse: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = check(capsys, worse, "--baseline", baseline, "--format", "markdown")
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
    one = record(model="m" * 300, device_kind="cuda", nvml=20 * 2**30, peak_allocated_bytes=19 * 2**30)
    slower = msgspec.structs.replace(one, started_at="2026-03-15T00:00:00Z")
    text = as_text(compare([slower], [one]))
    assert [len(line) for line in text.splitlines() if "m" * 300 in line] == [len(slower.recipe.label())]
    assert max(len(line) for line in text.splitlines() if "m" * 300 not in line) <= 80


@pytest.mark.parametrize(
    ("written", "share"),
    [
        ("3%", 0.03),
        ("0.5%", 0.005),
        (" 3 % ", 0.03),
        ("0.03", 0.03),
        (".5", 0.5),
        ("0", 0.0),
        ("5e-3", 0.005),
        ("off", None),
    ],
)
def test_shares_are_read(written: str, share: float | None) -> None:
    assert Share().convert(written, None, None) == share


@given(st.floats(0, 99.9))
def test_percent_and_share_mean_the_same(percent: float) -> None:
    assert Share().convert(f"{percent!r}%", None, None) == pytest.approx(percent / 100, rel=1e-15, abs=0)
    assert Share().convert(repr(percent / 100), None, None) == percent / 100


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
    assert ran.stderr == "lorabench: check needs scipy, which is missing: pip install 'lorabench[check]'\n"
