"""The first screen of an estimate: the answer in its first line, a bar of the memory, what to change."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

LLAMA = "llama-3.1-8b"
GIB = 2**30


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["--method", "qlora", "--gpu", "rtx-4090"], r"Fits rtx-4090: at most [\d.]+ of 23.24 GiB, [\d,]+ tokens/s \("),
        (["--method", "full", "--gpu", "24GB"], r"Does not fit 24GB: at most [\d.]+ of 23.25 GiB$"),
        (["--method", "lora"], r"Needs [\d.]+ to [\d.]+ GiB of a GPU's memory$"),
    ],
)
def test_the_first_line_answers_and_the_screen_is_short(lorabench: Any, arguments: list[str], first: str) -> None:
    code, out, err = lorabench("estimate", LLAMA, *arguments)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.match(first, lines[0])
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_parts_of_the_bar_are_those_of_the_memory_and_as_wide_as_they_are_large(
    lorabench: Any, method: str
) -> None:
    command = ("estimate", LLAMA, "--method", method, "--gpu", "160GB")
    said = json.loads(lorabench(*command, "--format", "json")[1])
    out = lorabench(*command)[1]
    drawn = re.search(r"^\[(.*)\]$", out, re.MULTILINE)
    assert drawn is not None
    assert len(drawn[1]) == 78
    memory, usable = said["memory"], said["gpu_usable_bytes"]
    components = memory["components"]
    expected = {
        "w": components["weights"] + components["quantized_weights"],
        "d": components["adapters"],
        "g": components["gradients"] + components["optimizer_states"],
        "l": components["logits"],
        "c": memory["peak_reserved_bytes"] - memory["peak_allocated_bytes"],
        "x": memory["device_total_bytes"] - memory["peak_reserved_bytes"],
        ".": usable - memory["device_total_bytes"],
    }
    expected["a"] = memory["peak_allocated_bytes"] - sum(expected[mark] for mark in "wdgl")
    for mark, bytes_ in expected.items():
        assert drawn[1].count(mark) == pytest.approx(78 * bytes_ / usable, abs=1.01), mark
        legend = re.search(rf"(?:^| ){re.escape(mark)} [A-Za-z, ]+ ([\d.]+)", out, re.MULTILINE)
        assert (legend is None) == (bytes_ == 0), mark
        assert legend is None or float(legend[1]) == pytest.approx(bytes_ / GIB, abs=0.0051)


def test_a_recipe_that_does_not_fit_reaches_over_the_end_of_the_card(lorabench: Any) -> None:
    out = lorabench("estimate", LLAMA, "--method", "full", "--gpu", "24GB")[1]
    drawn = re.search(r"^\[(.*)\]$", out, re.MULTILINE)
    most = re.match(r"Does not fit 24GB: at most ([\d.]+)", out)
    assert drawn is not None
    assert most is not None
    assert drawn[1].index("|") == pytest.approx(78 * 23.25 / float(most[1]), abs=1)
    assert "| end of the card 23.25 GiB" in out
    assert "fits with method=lora" in out


def test_v_adds_settings_terms_and_tables(lorabench: Any) -> None:
    short, long = (
        lorabench("estimate", LLAMA, "--method", "lora", "--gpu", "l40s", *more)[1] for more in ((), ("-v",))
    )
    assert long.splitlines()[0] == short.splitlines()[0]
    for said in ("seq_len=2048", "LoRA weights, float32", "peak reserved", "share of time: "):
        assert said not in short
        assert said in long


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_colours_are_for_terminals_and_not_for_no_color(
    monkeypatch: pytest.MonkeyPatch, no_color: str, colored: bool
) -> None:
    from lorabench.cli.memory_bar import painter

    monkeypatch.setenv("NO_COLOR", no_color)
    assert ("\x1b[" in painter(terminal=True)("www", "#0072B2")) == colored
    assert painter(terminal=False)("www", "#0072B2") == "www"
