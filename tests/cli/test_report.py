from __future__ import annotations

import csv
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lorabench.bench.records.record import write_record
from lorabench.cli import main
from tests.sample_records import MODEL_CONFIG, sample_record


def report(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out, err


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_record(folder, sample_record())
    write_record(folder, sample_record(rank=64, outcome="oom"))
    return folder


def test_it_says_in_one_line_what_it_wrote(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = results.parent / "pages" / "page.html"
    code, out, err = report(capsys, results, "-o", page)
    size = page.stat().st_size / 2**20
    assert (code, err) == (0, "")
    assert out == f"wrote {page} ({size:.1f} MiB): 2 runs, 1 failed\n"
    assert page.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def _umask() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask:"))
    return int(line.split()[1], 8)


def test_it_writes_report_html_unless_told_otherwise(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    (results.parent / "report.html").write_text("an older one")
    assert report(capsys, "results")[0] == 0
    assert "lora r64" in (results.parent / "report.html").read_text()


def test_several_folders_make_one_page(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "more", sample_record(method="full"))
    code, out, _ = report(capsys, results, tmp_path / "more", "-o", tmp_path / "page.html")
    assert code == 0
    assert out.endswith(": 3 runs, 1 failed\n")


def test_runs_that_all_failed_still_make_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "failed", sample_record(outcome="error", message="boom"))
    code, _, _ = report(capsys, tmp_path / "failed", "-o", tmp_path / "page.html")
    assert code == 0
    assert "boom" in (tmp_path / "page.html").read_text()


def test_open_shows_the_page_in_the_browser(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))  # type: ignore[func-returns-value]
    page = results.parent / "a page.html"
    assert report(capsys, results, "-o", page, "--open")[::2] == (0, "")
    assert opened == [page.as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert report(capsys, results, "-o", page, "--open")[::2] == (0, "no browser found to open the page\n")


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("taken", "not a file"),
        ("taken/file/page.html", "cannot write the report"),
        ("x" * 300 + ".html", "cannot write the report"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(
    output: str, complaint: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    code, out, err = report(capsys, results, "-o", tmp_path / output)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert complaint in err
    assert "-o" in err
    assert list((tmp_path / "taken").iterdir()) == [tmp_path / "taken" / "file"]


def test_a_page_that_finds_no_room_leaves_the_old_one(results: Path, tmp_path: Path) -> None:
    """A limit of the size of files stands for a full disk."""
    page = tmp_path / "pages" / "page.html"
    page.parent.mkdir()
    page.write_text("old")
    done = subprocess.run(
        [sys.executable, "-m", "lorabench", "report", str(results), "-o", str(page)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"lorabench: {page}: cannot write the report: File too large: ")
    assert [path.read_text() for path in page.parent.iterdir()] == ["old"]


@pytest.mark.parametrize("folder", ["missing", "empty", "file", "x" * 5000])
def test_a_folder_without_records_is_refused(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    code, _, err = report(capsys, tmp_path / folder, "-o", tmp_path / "page.html")
    assert code == 2
    assert err.count("\n") == 1
    assert folder[:900] in err
    assert not (tmp_path / "page.html").exists()


def test_without_jinja2_it_names_the_extra(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = report(capsys, results, "-o", results.parent / "page.html")
    assert code == 2
    assert err.count("\n") == 1
    assert "pip install 'lorabench[report]'" in err


def test_estimates_alone_make_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    code, out, err = report(capsys, "--model", "meta-llama/Llama-3.1-8B", "--gpu", "24GB", "-o", page)
    assert (code, err) == (0, "")
    assert out.startswith(f"wrote {page} (")
    assert out.endswith(": estimates of meta-llama/Llama-3.1-8B\n")
    text = page.read_text()
    assert re.findall(r'<section id="(\w+)"', text) == ["summary", "fits", "what_if", "claims"]
    assert '<option value="24GB">24GB (24.00 GiB)</option>' in text


def test_a_model_can_be_asked_about_beside_results(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = results.parent / "page.html"
    code, out, _ = report(capsys, results, "--model", "qwen2.5-0.5b", "-o", page)
    assert code == 0
    assert out.endswith(": 2 runs, 1 failed; estimates of Qwen/Qwen2.5-0.5B\n")
    assert '<option value="demo/llama-2m">' in page.read_text()
    assert '<option value="Qwen/Qwen2.5-0.5B" selected>' in page.read_text()


def test_traced_recipes_stand_beside_what_was_estimated_and_measured(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(results, sample_record(rank=4, model_config={**MODEL_CONFIG, "model_type": "nosuch"}))
    page = results.parent / "page.html"
    code, out, err = report(capsys, results, "--trace", "-o", page)
    assert (code, out.count("\n")) == (0, 1)
    assert err.startswith("not traced: llama-2m lora r4")
    assert err.count("\n") == 1
    assert "estimated, traced, measured" in page.read_text()


def test_traces_are_refused_where_they_cannot_be(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--trace needs results" in report(capsys, "--model", "qwen2.5-0.5b", "--trace")[2]
    monkeypatch.setitem(sys.modules, "peft", None)
    code, _, err = report(capsys, results, "--trace", "-o", results.parent / "page.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "--trace needs peft" in err
    assert not (results.parent / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to report: name folders of results, or a model with --model NAME"),
        (["--gpu", "rtx-4090"], "nothing to report"),
        (["--model", "nosuch"], "no model 'nosuch'"),
        (["--model", "qwen2.5-0.5b", "--gpu", "nosuch"], "no GPU 'nosuch'"),
    ],
)
def test_a_page_about_nothing_is_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = report(capsys, *arguments, "-o", tmp_path / "page.html")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert not any(tmp_path.iterdir())


def test_csv_has_a_row_for_each_record(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    assert report(capsys, "results", "--format", "csv") == (0, "wrote report.csv: 2 runs\n", "")
    with Path("report.csv").open(newline="") as file:
        rows = {row["rank"]: row for row in csv.DictReader(file)}
    record = sample_record()
    assert record.measurement is not None
    measured = rows[str(record.recipe.rank)]
    assert int(measured["peak_allocated_bytes"]) == record.measurement.memory.peak_allocated_bytes
    assert (rows["64"]["outcome"], rows["64"]["peak_allocated_bytes"]) == ("oom", "")
    code, _, err = report(capsys, "results", "--format", "csv", "--gpu", "t4")
    assert (code, err) == (2, "lorabench: --gpu is for the page: leave it out with --format csv\n")
