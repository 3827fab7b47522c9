"""Several estimates at once: the methods side by side, and lists of values."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

LLAMA = "llama-3.1-8b"
QUICK = ("smollm2-135m", "--no-replay", "--seq-len", "512")


def json_of(lorabench: Any, *arguments: str) -> Any:
    code, out, err = lorabench("estimate", *arguments, "--format", "json")
    assert (code, err) == (0, "")
    return json.loads(out)


def rows_of(out: str, title: str) -> Iterator[list[str]]:
    """Return the cells of the table whose first column has that title."""
    table = out[out.index(f"\n{title} ") :].strip("\n").split("\n\n")[0]
    return (line.split() for line in table.splitlines()[1:])


def test_without_a_method_each_answers_as_it_does_alone(lorabench: Any) -> None:
    arguments = ("smollm2-135m", "--gpu", "rtx-4090", "--seq-len", "512", "--rank", "8", "--tokens", "5M")
    together = json_of(lorabench, *arguments)
    assert [one["recipe"]["method"] for one in together] == ["full", "lora", "qlora"]
    for one in together:
        method = one["recipe"]["method"]
        own = [each for each in arguments if method != "full" or each not in ("--rank", "8")]
        assert one == json_of(lorabench, *own, "--method", method)


def test_the_first_line_says_which_methods_fit_and_the_screen_is_short(lorabench: Any) -> None:
    code, out, err = lorabench("estimate", LLAMA, "--gpu", "rtx-4090", "--tokens", "50M", "--price-per-hour", "0.8")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    first = r"qlora fits rtx-4090 with ([\d.]+) GiB to spare, lora with ([\d.]+) GiB; full does not$"
    spare = re.match(first, lines[0])
    assert spare is not None
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    cells = {row[0]: row[1:] for row in rows_of(out, "method")}
    assert [cells[method][0] for method in ("full", "lora", "qlora")] == ["no", "yes", "yes"]
    assert (cells["qlora"][3], cells["lora"][3]) == (spare[1], spare[2])
    assert float(cells["full"][1].replace(",", "")) - float(cells["lora"][1]) > 100
    hours, cost = float(cells["lora"][-3]), float(cells["lora"][-1])
    assert cost == pytest.approx(0.8 * hours, rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "first"),
    [
        (["--gpu", "4GB"], "full, lora and qlora do not fit 4GB"),
        (["--gpu", "b200"], r"qlora fits b200 with [\d.]+ GiB to spare, lora with [\d.]+ GiB, full with [\d.]+ GiB"),
        ([], r"Needs at most: full [\d.]+ GiB, lora [\d.]+ GiB, qlora [\d.]+ GiB of a GPU's memory"),
    ],
)
def test_the_answer_is_a_sentence_whatever_fits(lorabench: Any, gpu: list[str], first: str) -> None:
    _, out, _ = lorabench("estimate", LLAMA, "--no-replay", *gpu)
    assert re.fullmatch(first, out.splitlines()[0])


def test_lists_make_a_row_of_each_combination_that_equals_the_single_estimate(lorabench: Any) -> None:
    arguments = (*QUICK[:2], "--method", "lora")
    lists = ("--gpu", "rtx-4090,24GB", "--rank", "8,64", "--seq-len", "512,1k", "--batch-size", "1,2")
    together = json_of(lorabench, *arguments, *lists)
    assert len(together) == 16
    expected = product(("rtx-4090", "24GB"), (8, 64), (1, 2), (512, 1024))
    for one, (gpu, rank, batch, length) in zip(together, expected, strict=True):
        own = ("--gpu", gpu, "--rank", str(rank), "--batch-size", str(batch), "--seq-len", str(length))
        assert one == json_of(lorabench, *arguments, *own)


def test_many_rows_have_ranges_and_say_so(lorabench: Any) -> None:
    lists = ("--method", "lora", "--rank", "1,2,3,4,5,6,7")
    code, out, _ = lorabench("estimate", "smollm2-135m", "--gpu", "rtx-4090", *lists)
    assert code == 0
    assert "7 rows: memory by ranges; the allocator is replayed for up to 6" in out
    answers = json_of(lorabench, "smollm2-135m", "--gpu", "rtx-4090", *lists)
    assert answers == json_of(lorabench, "smollm2-135m", "--gpu", "rtx-4090", "--no-replay", *lists)
    assert len(list(rows_of(out, "rank"))) == 7


def test_a_table_names_what_differs_and_the_fastest_that_fits(lorabench: Any) -> None:
    lists = ("--method", "lora,qlora", "--gpu", "rtx-4090,h100-sxm", "--batch-size", "1,4096")
    code, out, _ = lorabench("estimate", *QUICK, *lists)
    assert code == 0
    answers = json_of(lorabench, *QUICK, *lists)
    fitting = [one for one in answers if one["fits"]]
    fastest = max(fitting, key=lambda one: one["throughput"]["tokens_per_second"])
    said = f"{len(fitting)} of 8 fit; the fastest: {fastest['gpu']}, {fastest['recipe']['method']}, batch 1: "
    assert " ".join(out.split()).startswith(f"{said}{fastest['throughput']['tokens_per_second']:,.0f} tokens/s")
    found = [(row[0], row[1], int(row[2])) for row in rows_of(out, "gpu")]
    assert found == [(one["gpu"], one["recipe"]["method"], one["recipe"]["batch_size"]) for one in answers]
    assert max(map(len, out.splitlines())) <= 80


def test_csv_has_a_row_each_with_the_same_columns(lorabench: Any) -> None:
    _, out, _ = lorabench("estimate", *QUICK, "--rank", "4,8", "--gpu", "24GB", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["method"], row["rank"]) for row in rows] == [
        ("full", ""),
        *product(("lora", "qlora"), ("4", "8")),
    ]
    answers = json_of(lorabench, *QUICK, "--rank", "4,8", "--gpu", "24GB")
    assert [int(row["margin_bytes"]) for row in rows] == [one["margin_bytes"] for one in answers]


def test_markdown_has_the_answer_and_a_table(lorabench: Any) -> None:
    _, out, _ = lorabench("estimate", *QUICK, "--gpu", "24GB", "--format", "markdown")
    assert out.startswith("**qlora fits 24GB with ")
    assert [line.split(" | ")[0] for line in out.splitlines() if line.startswith("|")][2:] == [
        "| full",
        "| lora",
        "| qlora",
    ]


@pytest.mark.parametrize(("gpus", "code"), [("rtx-4090", 0), ("4GB", 1), ("4GB,rtx-4090", 0), ("4GB,4.5GB", 1)])
def test_require_fit_wants_something_that_fits(lorabench: Any, gpus: str, code: int) -> None:
    assert lorabench("estimate", LLAMA, "--no-replay", "--gpu", gpus, "--require-fit")[0] == code


def test_a_method_that_the_model_cannot_have_is_said(lorabench: Any) -> None:
    stored = "unsloth/Llama-3.1-8B-bnb-4bit"
    code, out, _ = lorabench("estimate", stored, "--no-replay", "--gpu", "24GB")
    assert code == 0
    assert [row[0] for row in rows_of(out, "method")] == ["qlora"]
    for method in ("full", "lora"):
        assert f"{method} is left out: the weights of meta-llama/Llama-3.1-8B are stored in 4 bits" in " ".join(
            out.split()
        )
    code, out, err = lorabench("estimate", stored, "--no-replay", "--format", "json")
    assert (code, err.count("\n"), len(json.loads(out))) == (0, 2, 1)
    assert err.startswith("lorabench: full is left out: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--explain"], "--explain is for one estimate: add --method full, lora or qlora, and no lists"),
        (["--method", "lora,qlora", "-v"], "-v is for one estimate"),
        (["--rank", "8,0"], "rank must be a whole number from 1"),
        (["--rank", "8,x"], "'x' is not a valid integer"),
        (["--method", "lora,qlroa"], "did you mean qlora"),
        (["--seq-len", "4,096"], "commas separate values, so write numbers without them"),
        (["--target-modules", "nothing"], "has no linear layer 'nothing'"),
        (["--gpu", "rtx-4090,rtx-9999"], "no GPU 'rtx-9999'"),
        (["--gpu", "rtx-4090,24GB", "--tokens", "1M"], "24GB is only a memory size"),
        (["--method", "full", "--rank", "8,16"], "rank does not apply to method full"),
        (["--quant-type", "nf4"], "quant_type does not apply to method lora: leave it out, or use method qlora"),
        (["--rank", ",".join(map(str, range(1, 502)))], "these are 1,503 estimates, and the limit is 1,000"),
    ],
)
def test_what_cannot_be_listed_is_refused_in_one_line(lorabench: Any, arguments: list[str], said: str) -> None:
    code, out, err = lorabench("estimate", "smollm2-135m", "--no-replay", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
