"""What `lorabench estimate` says of speed, duration and cost."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import partial
from typing import Any

import pytest

from lorabench.cli.speed import in_time

LLAMA = "meta-llama/Llama-3.1-8B"


@pytest.fixture
def estimate(estimate: Any) -> Any:
    """Run ``lorabench estimate LLAMA``, by LoRA unless a method is named; return its exit code, output and errors."""
    return partial(estimate, LLAMA)


def answer(estimate: Any, *arguments: str) -> dict[str, Any]:
    code, out, err = estimate(*arguments, "--format", "json")
    assert (code, err) == (0, "")
    speed: dict[str, Any] = json.loads(out)["throughput"]
    return speed


def test_speed_is_a_range_around_what_is_likely(estimate: Any) -> None:
    speed = answer(estimate, "--method", "qlora", "--gpu", "rtx-4090")
    least, most = speed["tokens_per_second_range"]
    assert least < speed["tokens_per_second"] < most
    assert speed["tokens_per_second"] == pytest.approx(2048 / speed["step_seconds"])
    assert sum(speed["groups_seconds"].values()) == pytest.approx(speed["step_seconds"])
    assert speed["mfu"] < speed["hfu"] < 1
    assert speed["mfu"] == pytest.approx(speed["flops"]["model"] / speed["step_seconds"] / 165.2e12)
    assert speed["rates"] == "datasheet"


def test_a_step_of_many_micro_batches_trains_as_many_tokens(estimate: Any) -> None:
    one, eight = (answer(estimate, "--gpu", "l40s", "--gradient-accumulation", many) for many in ("1", "8"))
    assert eight["flops"]["model"] == 8 * one["flops"]["model"]
    assert 1 <= eight["tokens_per_second"] / one["tokens_per_second"] < 1.05


def test_tokens_take_time_and_energy_and_cost_money(estimate: Any) -> None:
    speed = answer(estimate, "--gpu", "h100-sxm", "--tokens", "50M", "--price-per-hour", "2.50")
    training = speed["training"]
    assert training["tokens"] == 50_000_000
    assert training["seconds"] == pytest.approx(50e6 / speed["tokens_per_second"])
    assert training["cost"] == pytest.approx(training["seconds"] / 3600 * 2.5)
    least, most = training["cost_range"]
    assert least < training["cost"] < most
    # From 40 % of the board's 700 W in the least time to all of them in the most.
    hours = [seconds / 3600 for seconds in training["seconds_range"]]
    assert training["kilowatt_hours_range"] == pytest.approx([0.4 * 0.7 * hours[0], 0.7 * hours[1]])


def test_paged_states_take_time_only_where_the_gpu_has_no_room_for_them(estimate: Any) -> None:
    full = ("--method", "full", "--dtype", "bfloat16", "--mixed-precision", "no", "--optim", "paged_adamw_8bit")
    spacious, tight = (answer(estimate, *full, "--gpu", gpu) for gpu in ("h100-sxm", "l40s"))
    assert "paging" not in spacious["groups_seconds"]
    # Two states of a byte each, of the embedding four; beside the step there is room for 45 − 31 GiB of them, less what
    # the driver keeps and the largest CUDA context; the rest goes there and back at 12 GB/s.
    embedding = 128_256 * 4096
    states = 2 * (8_030_261_248 - embedding) + 8 * embedding
    assert tight["groups_seconds"]["paging"] == pytest.approx(2 * (states - 13.0 * 2**30) / 12e9, rel=0.03)


def test_of_a_size_alone_no_speed_is_known(estimate: Any) -> None:
    assert "throughput" not in json.loads(estimate("--gpu", "24GB", "--format", "json")[1])
    assert "tokens/s" not in estimate("--gpu", "24GB")[1]


def test_a_gpu_without_bfloat16_is_said_to_emulate_it(estimate: Any) -> None:
    said = "t4 has no bfloat16 hardware: PyTorch emulates it"
    assert said in estimate("--gpu", "t4")[1]
    assert said not in estimate("--gpu", "t4", "--dtype", "float16", "--mixed-precision", "fp16")[1]
    assert json.loads(estimate("--gpu", "v100-sxm-16gb", "--format", "json")[1])["emulated_dtype"] == "bfloat16"


@pytest.mark.parametrize("written", ["1005000", "1_005_000", "1,005,000", "1005k", "1.005M", "1.005e6", "0.001005B"])
def test_a_number_of_tokens_is_read_however_it_is_written(estimate: Any, written: str) -> None:
    said = json.loads(estimate("--gpu", "l4", "--tokens", written, "--format", "json")[1])
    assert said["throughput"]["training"]["tokens"] == 1_005_000


def test_people_read_speed_beside_the_verdict_and_the_rest_below(estimate: Any) -> None:
    _, out, _ = estimate("--method", "qlora", "--gpu", "rtx-4090", "--tokens", "1.5B", "--price-per-hour", "0.4")
    (paragraph,) = (part for part in out.split("\n\n") if part.startswith("step: "))
    assert max(map(len, out.splitlines())) <= 80
    assert all(said in paragraph for said in ("MFU", "kWh", "cost", "1,500,000,000 tokens"))
    _, out, _ = estimate("--method", "full", "--gpu", "rtx-4090")
    assert re.match(r"Does not fit rtx-4090: at most [\d.]+ of 23.24 GiB\n", out)
    assert "\nwith enough memory: " in out
    _, out, _ = estimate("--method", "qlora", "--prepare-kbit", "--gpu", "rtx-4080", "--no-replay")
    assert re.match(r"Tight on rtx-4080: .* tokens/s \(", out)
    _, out, _ = estimate("--gpu", "rtx-4090", "--format", "markdown")
    assert "\n- share of time: linear layers" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "5M"], "--tokens needs a GPU"),
        (["--tokens", "5M", "--gpu", "24GB"], "24GB is only a memory size"),
        (["--price-per-hour", "2", "--gpu", "l4"], "add --tokens"),
        (["--tokens", "5.5", "--gpu", "l4"], "write one such as 50M"),
        (["--tokens", "9" * 400, "--gpu", "l4"], "write one such as 50M"),
        (["--tokens", "0", "--gpu", "l4"], "write one such as 50M"),
        (["--tokens", "5M", "--price-per-hour", "-1", "--gpu", "l4"], "must be from 0 to 1,000,000,000"),
        (["--tokens", "5M", "--price-per-hour", "nan", "--gpu", "l4"], "must be from 0 to"),
        (["--tokens", "5M", "--price-per-hour", "1e300", "--gpu", "l4"], "must be from 0 to"),
        (["--tokens", "9999999B", "--gpu", "l4"], "must be from 1 to 1,000,000,000,000,000"),
        (["--calibration", "none.json", "--gpu", "l4"], "make one with `lorabench calibrate`"),
        (["--calibration", "none.json"], "--calibration needs a GPU"),
        (["--gpu", "t4", "--attn-implementation", "flash_attention_2"], "use sdpa or eager, or another GPU"),
    ],
)
def test_questions_that_nothing_answers_are_refused(estimate: Any, arguments: list[str], said: str) -> None:
    code, out, err = estimate(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h"), (864_000, "10 days")],
)
def test_times_are_said_in_the_unit_that_suits_them(seconds: float, said: str) -> None:
    assert in_time(seconds) == said


def test_csv_has_what_tokens_take_and_cost(estimate: Any) -> None:
    code, out, _ = estimate("--gpu", "l4", "--tokens", "50M", "--price-per-hour", "2", "--format", "csv")
    assert code == 0
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["tokens"] == "50000000"
    assert float(row["training_seconds"]) == pytest.approx(50e6 / float(row["tokens_per_second"]))
    assert float(row["cost"]) == pytest.approx(float(row["training_seconds"]) / 3600 * 2)
