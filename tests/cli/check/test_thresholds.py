"""Thresholds, as options and in suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.bench.suites.suite_file import load_suite
from lorabench.cli.parameters import Share
from lorabench.estimator.errors import UserError
from tests.bench.check.records import folder, record

MIB = 2**20


WIDE = ["--memory-tolerance", "4%", "--speed-tolerance", "0.11", "--nvml-tolerance", "off"]
WIDE += ["--loss-tolerance", "7 %", "--loss-over-seeds-tolerance", "7%"]


def test_tolerances_are_options(baseline: str, all_worse: str, check: Any) -> None:
    folder(Path(baseline), record(rank=8, peak_allocated_bytes=32 * MIB, nvml=400 * MIB), record(rank=4))
    for unset in range(0, len(WIDE), 2):
        assert check(all_worse, "--baseline", baseline, *WIDE[:unset], *WIDE[unset + 2 :])[0] == 1
    code, out, _ = check(all_worse, "--baseline", baseline, *WIDE)
    assert code == 0
    assert "Thresholds: memory 4%, reserved 10%, nvml off, speed 11%, loss 7%, loss over\n  seeds 7%\n" in out


def test_tolerances_are_in_the_suite_too_and_options_win(
    baseline: str, all_worse: str, tmp_path: Path, check: Any
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "defaults: {model: lorabench/demo-llama}\nmatrix: {method: lora}\n"
        "check: {memory: 4%, speed: 0.11, loss: off, loss_over_seeds: off}\n"
    )
    with_suite = ["--baseline", baseline, "--suite", str(suite)]
    code, out, _ = check(all_worse, *with_suite)
    assert code == 0
    assert "loss, last" not in out
    assert check(all_worse, *with_suite, "--speed-tolerance", "3%")[0] == 1


@pytest.mark.parametrize(
    ("check_section", "said"),
    [
        ("{speed: fast}", "line 3: speed: 'fast' is not a share"),
        ("{speeed: 3%}", "line 3: unknown threshold 'speeed': did you mean speed?"),
        ("[speed]", "line 3: check must be a mapping of thresholds"),
        ("{memory: true}", "line 3: memory: True is not a share"),
    ],
)
def test_thresholds_of_a_suite_are_validated(check_section: str, said: str, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"defaults: {{model: lorabench/demo-llama}}\nmatrix: {{method: lora}}\ncheck: {check_section}\n")
    with pytest.raises(UserError, match=said):
        load_suite(str(suite))


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
