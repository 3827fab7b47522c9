"""`lorabench plan` on the command line."""

from __future__ import annotations

import json
import re
import shlex
from itertools import chain
from typing import Any

import pytest

from lorabench.cli.plan import estimate_command
from lorabench.estimator.recipes.recipe import make_recipe

LLAMA = "meta-llama/Llama-3.1-8B"


def test_people_read_a_plan_in_80_columns(lorabench: Any) -> None:
    code, out, err = lorabench("plan", LLAMA, "--gpu", "l40s")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "fastest" in out
    assert "16-bit" in out
    assert "longest sequence" in out
    assert f"{LLAMA} on l40s (44.24 of 44.99 GiB usable) at length 2048\n" in out


@pytest.mark.parametrize("options", [("--optim", "paged_adamw_32bit"), ("--min-batch-tokens", "5M")])
def test_a_plan_of_long_words_has_80_columns_too(lorabench: Any, options: tuple[str, ...]) -> None:
    code, out, _ = lorabench("plan", LLAMA, "--gpu", "b200", *options)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_the_command_that_a_plan_prints_estimates_its_first_choice(lorabench: Any) -> None:
    _, out, _ = lorabench("plan", LLAMA, "--gpu", "rtx-4080", "--format", "json")
    best = json.loads(out)["choices"][0]
    _, out, _ = lorabench("plan", LLAMA, "--gpu", "rtx-4080", "--format", "markdown")
    command = next(line.partition(": ")[2] for line in out.splitlines() if line.startswith("Details of the first"))
    _, out, _ = lorabench(*shlex.split(command)[1:], "--format", "json")
    estimate = json.loads(out)
    assert estimate["recipe"] == best["recipe"]
    assert estimate["margin_bytes"] == best["margin_bytes"]
    assert estimate["throughput"] == best["throughput"]


def test_a_recipe_is_written_with_what_is_not_default() -> None:
    recipe = make_recipe(LLAMA, method="qlora", prepare_kbit=True, rank=64, optim="sgd", gradient_checkpointing=False)
    command = estimate_command(recipe, "l4")
    assert command.split()[1:3] == ["estimate", LLAMA]
    assert shlex.split(command.partition(LLAMA)[2]) == shlex.split(
        "--method qlora --rank 64 --lora-alpha 128 --prepare-kbit --optim sgd --no-gradient-checkpointing --gpu l4"
    )


def test_nothing_that_fits_is_exit_code_1_with_what_would(lorabench: Any) -> None:
    code, out, err = lorabench("plan", LLAMA, "--gpu", "rtx-3060", "--method", "lora")
    assert (code, err) == (1, "")
    assert re.search(r"None of \d+ recipes fits", out)
    assert "fits with method=qlora" in out


def test_where_a_method_fits_the_others_are_not_said_to_need_another_length(lorabench: Any) -> None:
    code, out, _ = lorabench("plan", "meta-llama/Llama-3.1-70B", "--gpu", "rtx-a6000")
    assert code == 0
    assert out.count("does not fit") == 2
    assert "seq_len" not in out


def test_a_model_with_fewer_positions_than_the_default_length_is_planned_at_all_it_has(lorabench: Any) -> None:
    code, out, _ = lorabench("plan", "gpt2", "--gpu", "t4")
    assert code == 0
    assert "at length 1024 assumed: seq_len 1024 instead of 2048: openai-community/gpt2 has learned positions" in (
        " ".join(out.split())
    )
    assert "--seq-len 1024" in out
    code, out, _ = lorabench("plan", "gpt2", "--all-gpus")
    assert code == 0
    assert "seq_len=1024" in out
    assert lorabench("plan", "gpt2", "--gpu", "t4", "--seq-len", "2048")[0] == 2


def test_all_gpus_names_those_that_are_enough(lorabench: Any) -> None:
    code, out, _ = lorabench("plan", LLAMA, "--method", "qlora", "--all-gpus", "--format", "json")
    assert code == 0
    said = json.loads(out)
    assert said["recipe"]["method"] == "qlora"
    names = [one["gpu"] for one in said["gpus"]]
    assert "l4" in names
    for one in said["gpus"]:
        assert one["gpu_memory_bytes"] - one["gpu_usable_bytes"] == 768 * 2**20
    assert "rtx-3080" not in names  # 10 GiB
    assert "t4" not in names
    assert "t4" in said["lacking"]["bfloat16"]
    code, out, _ = lorabench("plan", LLAMA, "--all-gpus")
    assert "Left out because they have no bfloat16: rtx-2080-ti, t4, v100-sxm-16gb" in out
    code, out, _ = lorabench("plan", "meta-llama/Llama-3.1-405B", "--method", "full", "--all-gpus")
    assert code == 1
    assert "fits on no single GPU" in out


@pytest.mark.parametrize(
    ("model", "options", "setting"),
    [
        ("google/gemma-2-9b", [], "attn_implementation=eager"),  # sdpa cannot cap attention scores
        ("google/gemma-2-2b", ["--mixed-precision", "no", "--dtype", "float32"], "attn_implementation=eager"),
        ("mistralai/Mixtral-8x7B-v0.1", ["--method", "lora"], "target_modules=attention"),  # dropout beside experts
        ("mistralai/Mixtral-8x7B-v0.1", ["--lora-dropout", "0"], "target_modules=all-linear"),
    ],
)
def test_all_gpus_hold_what_the_model_can_have(lorabench: Any, model: str, options: list[str], setting: str) -> None:
    code, out, err = lorabench("plan", model, *options, "--all-gpus")
    assert (code, err) == (0, "")
    assert setting in out.split()


def test_the_help_says_searched_of_what_a_plan_searches(lorabench: Any) -> None:
    of_plan, of_estimate = (" ".join(lorabench(command, "--help")[1].split()) for command in ("plan", "estimate"))
    beside = "full, lora and qlora side by side"
    for option, help_, default in (
        ("--method [full|lora|qlora|ia3]", "Train all weights (full) or adapters.", beside),
        ("--batch-size INTEGER", "Sequences per micro-batch.", "1"),
    ):
        assert f"{option} {help_} [searched]" in of_plan
        assert f"{option},… {help_} [{default}]" in of_estimate
    assert "Rank of the adapters. [16]" in of_plan


def test_a_rate_has_two_figures_and_so_have_its_ends(lorabench: Any) -> None:
    table = lorabench("plan", LLAMA, "--gpu", "rtx-4090")[1]
    rates = re.findall(r"(\S+)k \((\S+)–(\S+)\)", table)
    assert rates
    for number in chain.from_iterable(rates):
        assert len(number.replace(".", "").lstrip("0")) == 2


@pytest.mark.parametrize("target", [["--gpu", "h100-sxm"], ["--all-gpus"]])
def test_a_length_beyond_the_model_is_warned_of(lorabench: Any, target: list[str]) -> None:
    long = ("plan", LLAMA, "--method", "qlora", "--seq-len", "140000", *target)
    said = "seq_len 140000 is longer than the 131072 positions"
    assert f"\nwarning: {said}" in lorabench(*long)[1]
    assert f"\n**Warning**: {said}" in lorabench(*long, "--format", "markdown")[1]
    assert said in json.loads(lorabench(*long, "--format", "json")[1])["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "plan needs a GPU"),
        (["--all-gpus", "--gpu", "l4"], "--gpu does not apply to --all-gpus"),
        (["--all-gpus", "--min-batch-tokens", "5k"], "--min-batch-tokens does not apply to --all-gpus"),
        (["--gpu", "l4", "--min-batch-tokens", "-5"], "is not a number of tokens"),
        (["--gpu", "l4", "--min-batch-tokens", "1e15"], "488,281,250,000 passes of 2,048 tokens, and the limit"),
        (["--gpu", "l4", "--method", "full", "--rank", "8"], "rank does not apply to method full"),
        (["--gpu", "l4", "--target-modules", "nothing"], "nothing"),
        (["--all-gpus", "--method", "full", "--rank", "8"], "rank does not apply to method full"),
        (["--gpu", "t4", "--attn-implementation", "flash_attention_2"], "t4 has no flash attention 2 (attn_impl"),
        (["--gpu", "t4", "--dtype", "bfloat16"], "t4 has no bfloat16, which the settings require"),
    ],
)
def test_wrong_use_is_refused_in_one_line(lorabench: Any, arguments: list[str], said: str) -> None:
    code, out, err = lorabench("plan", LLAMA, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
