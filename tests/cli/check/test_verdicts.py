"""What `lorabench check` concludes, and its exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorabench.bench.check.baseline import compare
from lorabench.cli.check_formats import as_text
from tests.bench.check.records import folder, record, steady

MIB = 2**20


def test_results_against_themselves_pass(baseline: str, check: Any) -> None:
    code, out, err = check(baseline, "--baseline", baseline)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "6 same in 2 recipes."


def test_a_regression_fails_and_comes_first(baseline: str, worse: str, check: Any) -> None:
    code, out, _ = check(worse, "--baseline", baseline)
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


def test_what_is_open_is_no_pass(tmp_path: Path, baseline: str, check: Any) -> None:
    unsteady = folder(tmp_path / "x", record(rank=8, peak_allocated_bytes=32 * MIB, unstable=("GPU shared",)))
    code, out, _ = check(unsteady, "--baseline", baseline)
    assert code == 3
    assert "unstable after: GPU shared" in out
    assert out.splitlines()[-1] == "Partly inconclusive: 1 insufficient, 2 same in 1 recipe."


def test_nothing_in_common_concludes_nothing(baseline: str, tmp_path: Path, check: Any) -> None:
    other = folder(tmp_path / "other", record(rank=2))
    code, out, _ = check(other, "--baseline", baseline)
    assert code == 3
    assert out.count("Only in the baseline: ") == 2
    assert "no recipe is in both" in out


def test_what_never_ran_concludes_nothing(tmp_path: Path, check: Any) -> None:
    oom = folder(tmp_path / "oom", record(outcome="oom"))
    code, out, _ = check(oom, "--baseline", oom)
    assert code == 3
    assert out.splitlines()[-1] == "No conclusion: nothing was measured on both sides: 1 same in 1 recipe."


def test_it_is_said_where_all_recipes_are_slower() -> None:
    before = [one for rank in (4, 8) for one in steady(rank=rank)]
    one, both = (
        [*steady(1.1, rank=4), *steady(1.001, rank=8)],
        [one for rank in (4, 8) for one in steady(1.1, rank=rank)],
    )
    told = "All recipes are slower: the change, or the whole machine?"
    assert told in as_text(compare(both, before))
    assert told not in as_text(compare(one, before))


def test_other_devices_are_an_option(tmp_path: Path, baseline: str, check: Any) -> None:
    other = folder(tmp_path / "gpu", record(rank=8, peak_allocated_bytes=32 * MIB, device_name="Other CPU"))
    code, _, err = check(other, "--baseline", baseline)
    assert (code, err.count("\n")) == (2, 1)
    assert "--across-devices" in err
    code, out, _ = check(other, "--baseline", baseline, "--across-devices")
    assert code == 0
    assert "Device: Example CPU @ 2.50GHz (cpu) → Other CPU (cpu)" in out
