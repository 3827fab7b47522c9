"""`lorabench trace` on the command line."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import pytest

from lorabench.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ["demo-llama", "--method", "qlora", "--seq-len", "64"]


def exit_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(["trace", *arguments])
    return stopped.value.code


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    from contextlib import redirect_stdout

    with redirect_stdout(io.StringIO()) as out:
        assert exit_of(*SMALL, "--format", "json") == 0
    decoded: dict[str, Any] = json.loads(out.getvalue())
    return decoded


def test_json_has_what_scripts_rely_on(answer: dict[str, Any]) -> None:
    assert answer["recipe"]["model"] == "lorabench/demo-llama"
    assert answer["recipe"]["method"] == "qlora"
    assert set(answer["parameters"]) >= {"total", "trainable", "quantized"}
    memory = answer["memory"]
    assert sum(memory["components"].values()) == memory["peak_allocated_bytes"]
    assert memory["phase"] in memory["phase_peaks_bytes"]
    assert memory["peak_allocated_bytes"] <= memory["peak_reserved_bytes"] < memory["device_total_bytes"]
    assert set(answer["peak"]) == {"phase", "module", "operator"}
    assert set(answer["tensors"][0]) == {"component", "module", "operator", "shape", "dtype", "count", "bytes"}
    assert set(answer["timeline"][0]) == {"phase", "event", "allocated_bytes", "reserved_bytes"}


def test_csv_says_the_same_in_one_row(answer: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(*SMALL, "--format", "csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert int(row["peak_allocated_bytes"]) == answer["memory"]["peak_allocated_bytes"]
    assert int(row["activations_bytes"]) == answer["memory"]["components"]["activations"]
    assert row["peak_operator"] == answer["peak"]["operator"]


@pytest.mark.parametrize("format_", ["table", "markdown"])
def test_people_read_the_recipe_the_peak_and_the_largest_tensors(
    format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(*SMALL, "--format", format_) == 0
    out, err = capsys.readouterr()
    for said in ("lorabench/demo-llama", "4 bits", "peak allocated", "The peak is in", "mlp.gate_proj", "optimizer"):
        assert said in out
    assert err == ""  # progress is for terminals
    assert format_ == "markdown" or [line for line in out.splitlines() if len(line) > 80] == []


def test_the_cpus_kernels_reserve_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(*SMALL, "--backend", "cpu", "--format", "json") == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert (memory["peak_reserved_bytes"], memory["device_total_bytes"]) == (None, None)


def test_expandable_segments_change_what_the_allocator_counts_only(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(*SMALL, "--alloc-conf", "expandable_segments:True", "--format", "json") == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    changed = {name for name, bytes_ in answer["memory"]["components"].items() if memory["components"][name] != bytes_}
    assert changed <= {"rounding"}
    assert memory["peak_reserved_bytes"] % (2 * 2**20) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo-lama"], "did you mean"),
        (["demo-llama", "--loss", "liger", "--backend", "cpu"], "runs on CUDA only"),
        (["demo-llama", "--backend", "cpu", "--alloc-conf", ""], "sets CUDA's allocator"),
        (["demo-llama", "--target-modules", "q_prj"], "q_prj"),
        (["demo-llama", "--backend", "gpu"], "gpu"),
        (["demo-llama", "--gpu", "24GB"], "a trace needs the GPU's name"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert exit_of("demo-llama") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "peft" in err
    assert "pip install 'lorabench[bench]'" in err
