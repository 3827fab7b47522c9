"""Known cases that are let pass."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_a_known_case_passes_with_its_reason_printed(baseline: str, worse: str, check: Any) -> None:
    digest = json.loads(check(worse, "--baseline", baseline, "--format", "json")[1])["recipes"][0]["digest"]
    allowed = [
        "--allow",
        f"{digest}=needs the larger GPU",
        "--allow",
        "llama-2m lora r8 1×256 ckpt:peak_allocated_bytes=a=b",
    ]
    assert check(worse, "--baseline", baseline, *allowed[:2])[0] == 1
    code, out, _ = check(worse, "--baseline", baseline, *allowed)
    assert code == 0
    assert "regression, allowed: needs the larger GPU" in out
    assert "regression, allowed: a=b" in out
    assert out.splitlines()[-1] == "2 same, 2 allowed in 2 recipes."


def test_a_known_case_covers_one_metric_or_all(baseline: str, all_worse: str, check: Any) -> None:
    label = "llama-2m lora r8 1×256 ckpt"
    assert check(all_worse, "--baseline", baseline, "--allow", f"{label}=known")[0] == 0
    assert check(all_worse, "--baseline", baseline, "--allow", "step_seconds=slower driver")[0] == 1
    code, out, _ = check(baseline, "--baseline", baseline, "--allow", "step_seconds=slower driver")
    assert code == 0
    assert "Unused --allow: step_seconds=slower driver" in out
    code, out, _ = check(baseline, "--baseline", all_worse, "--allow", f"{label}=known")
    assert code == 0
    assert f"Unused --allow: {label}=known" in out


@pytest.mark.parametrize(
    ("waiver", "said"),
    [
        ("step_secnds=x", "did you mean step_seconds?"),
        ("step_seconds", "give a reason: step_seconds=REASON"),
        ("step_seconds=", "give a reason"),
        ("zzzz=x", "are known, such as final_loss, "),
    ],
)
def test_a_known_case_that_names_nothing_is_refused(waiver: str, said: str, baseline: str, check: Any) -> None:
    code, out, err = check(baseline, "--baseline", baseline, "--allow", waiver)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
