from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorabench.estimator.memory.breakdown import COMPONENTS
from tests.small_models import small_config

LLAMA = "meta-llama/Llama-3.1-8B"


def test_json_has_the_keys_that_scripts_rely_on(estimate: Any) -> None:
    code, out, err = estimate(LLAMA, "--method", "qlora", "-r", "8", "--gpu", "24GB", "--format", "json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["recipe"]["model"] == LLAMA
    assert (said["recipe"]["method"], said["recipe"]["rank"], said["recipe"]["seq_len"]) == ("qlora", 8, 2048)
    assert said["parameters"]["trainable"] == 41_943_040 // 2
    assert said["parameters"]["total"] == 8_030_261_248 + 41_943_040 // 2
    assert said["parameters"]["quantized"] == 6_979_321_856
    memory = said["memory"]
    assert set(memory["components"]) == set(COMPONENTS)
    assert sum(memory["components"].values()) == memory["peak_allocated_bytes"]
    assert memory["phase"] in ("forward", "backward", "optimizer")
    assert memory["peak_allocated_bytes"] <= memory["peak_reserved_bytes"] < memory["device_total_bytes"]
    assert said["fits"] is True


def test_without_a_gpu_nothing_is_said_of_fitting(estimate: Any) -> None:
    assert "fits" not in json.loads(estimate("gpt2", "--seq-len", "64", "--format", "json")[1])


@pytest.mark.parametrize(("size", "fits"), [("24GB", False), ("160GB", True)])
def test_require_fit_exits_1_where_it_does_not_fit(estimate: Any, size: str, fits: bool) -> None:
    code, out, err = estimate(LLAMA, "--method", "full", "--gpu", size, "--require-fit", "--format", "json")
    assert (code, json.loads(out)["fits"], err) == (0 if fits else 1, fits, "")
    assert estimate(LLAMA, "--method", "full", "--gpu", size)[0] == 0


@pytest.mark.parametrize(("method", "said"), [("qlora", "Fits"), ("full", "Does not fit")])
def test_what_is_to_spare_is_the_usable_memory_less_the_most_that_is_taken(
    estimate: Any, method: str, said: str
) -> None:
    out = estimate(LLAMA, "--method", method, "--gpu", "rtx-4090", "-v")[1]
    most = re.search(r"^device total .* to ([\d.]+) GiB", out, re.MULTILINE)
    answer = re.match(rf"{said} rtx-4090: at most ([\d.]+) of ([\d.]+) GiB", out)
    room = re.search(r"^(?:at least|up to) ([\d.]+) GiB .*: ([\d.]+) of 23.99 GiB are usable", out, re.MULTILINE)
    assert most is not None
    assert answer is not None
    assert room is not None
    assert (answer[1], answer[2]) == (most[1], room[2])
    assert float(room[1]) == pytest.approx(abs(float(room[2]) - float(most[1])), abs=0.0101)


def test_csv_is_one_row_with_the_recipe_and_bytes(estimate: Any) -> None:
    code, out, _ = estimate("gpt2", "--seq-len", "64", "--rank", "4", "--gpu", "rtx-4090", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(out))
    assert code == 0
    assert (row["model"], row["rank"], row["gpu"]) == ("openai-community/gpt2", "4", "rtx-4090")
    assert sum(int(row[f"{name}_bytes"]) for name in COMPONENTS) == int(row["peak_allocated_bytes"])


def test_markdown_has_tables(estimate: Any) -> None:
    code, out, _ = estimate("gpt2", "--seq-len", "64", "--format", "markdown", "--gpu", "8GB")
    assert code == 0
    assert out.startswith("**Fits 8GB: at most ")
    assert "\n**openai-community/gpt2**: method lora, rank 16" in out
    assert [line for line in out.splitlines() if line.startswith("| weights")]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("model", ["gpt2", "Llama-3.1-405B", "Mixtral-8x22B-Instruct-v0.1"])
def test_the_table_names_the_whole_recipe_within_80_columns(estimate: Any, model: str, method: str) -> None:
    targets = [] if method == "full" else ["--target-modules", "attention", "--lora-dropout", "0"]
    code, out, err = estimate(model, "--method", method, *targets, "--gpu", "80GB", "--seq-len", "1024", "-v")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if len(line) > 80] == []
    for setting in ("seq_len=1024", "batch_size=1", "optim=adamw_torch_fused", "gradient_checkpointing=yes"):
        assert setting in out
    assert "GiB" in out
    assert f"{method}\n" in out


@pytest.mark.parametrize(
    "options",
    [
        ("--modules-to-save", "embed_tokens,lm_head"),
        ("--method", "qlora", "--modules-to-save", "embed_tokens,lm_head", "--optim", "paged_adamw_32bit"),
        ("--rank", "99999", "--batch-size", "99999"),
    ],
)
def test_what_is_too_long_of_a_row_goes_on_below(estimate: Any, options: tuple[str, ...]) -> None:
    code, out, _ = estimate("Llama-3.1-405B", *options, "--gpu", "80GB", "-v")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    table = out.partition("persistent memory")[2].partition("\n\n")[0]
    assert " ".join(table.split()).count("float32") >= 2


def test_lengths_and_counts_have_units(estimate: Any) -> None:
    long, written = (estimate(LLAMA, "--seq-len", length) for length in ("4k", "4096"))
    assert long == written
    out = estimate(LLAMA, "--gpu", "h100-sxm", "--tokens", "10M", "--format", "json")[1]
    assert json.loads(out)["throughput"]["training"]["tokens"] == 10**7
    assert "Tokens per sequence, such as 4k; k is 1024. [2048]" in " ".join(estimate("--help")[1].split())


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_config_file_or_its_folder_is_a_model(estimate: Any, tmp_path: Path, as_folder: bool) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small_config("llama")))
    code, out, _ = estimate(str(tmp_path if as_folder else config), "--format", "json", "--seq-len", "64")
    assert code == 0
    assert json.loads(out)["parameters"]["adapter"] == 3 * 16 * (2 * 256 + 2 * 192 + 3 * 512)


CONFIGS = {
    "not-json.json": "{not json",
    "list.json": "[]",
    "bert.json": '{"model_type": "bert", "hidden_size": 8}',
    "heads.json": json.dumps({**small_config("llama"), "num_attention_heads": 7}),
    "negative.json": json.dumps({**small_config("llama"), "hidden_size": -128}),
    "text.json": json.dumps({**small_config("llama"), "num_hidden_layers": "three"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_no_model_is_refused(estimate: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(CONFIGS[name])
    code, out, err = estimate(str(tmp_path / name))
    assert (code, out) == (2, "")
    assert err.startswith("lorabench: ")
    assert err.count("\n") == 1
    assert name in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Llama-3.1-8C"], "did you mean"),
        (["./no/config.json"], "no/config.json"),
        (["gpt2", "--gpu", "rtx-4091"], "did you mean"),
        (["gpt2", "--gpu", "-5GB"], "-5GB"),
        (["gpt2", "--method", "qlroa"], "did you mean qlora?"),
        (["gpt2", "--optim", "adamv"], "--optim"),
        (["gpt2", "--dtype", "int8"], "float32"),
        (["gpt2", "--format", "yaml"], "json"),
        (["gpt2", "--rnk", "8"], "--rank"),
        (["gpt2", "--rank", "many"], "'many'"),
        (["gpt2", "--rank", "-1"], "rank"),
        (["gpt2", "--rank", "0"], "rank"),
        (["gpt2", "--batch-size", "0"], "batch_size"),
        (["gpt2", "--lora-dropout", "1.5"], "lora_dropout"),
        (["gpt2", "--lora-dropout", "nan"], "lora_dropout"),
        (["gpt2", "--lora-alpha", "nan"], "lora_alpha"),
        (["gpt2", "--seq-len", "64", "--target-modules", "c_atn"], "did you mean c_attn?"),
        (["gpt2", "--target-modules", ""], "target_modules"),
        (["gpt2", "--method", "full", "--rank", "8"], "rank does not apply to method full"),
        (["gpt2", "--quant-type", "fp4"], "use method qlora"),
        (["gpt2", "--seq-len", "1025"], "use --seq-len 1024 or less"),
        (["gpt2", "--gpu", "-24GB"], "GPU memory -24GB: must be above 0.75 GiB"),
        (["gpt2", "--gpu", "-24"], "GPU memory -24GB: must be above 0.75 GiB"),
        (["gpt2", "--gpu", "a100"], "'a100' fits several GPUs: name a100-pcie-40gb or a100-sxm-40gb or a100-pcie-80gb"),
        (["gpt2", "--seq-len", "2k"], "seq_len 2048: openai-community/gpt2 has learned positions for 1024 tokens"),
        (["gpt2", "--seq-len", "0.3k"], "is not a length: write whole tokens, such as 4096, or 4k (k is 1024)"),
        (["gpt2", "--require-fit", "--seq-len", "64"], "--gpu"),
        (["gemma-2-2b", "--attn-implementation", "sdpa"], "use --attn-implementation eager"),
        (
            ["mixtral-8x7b-v0.1", "--lora-dropout", "0.1", "--target-modules", "all-linear"],
            "lora_dropout 0.1: peft has no dropout for adapters of fused experts, which mistralai/Mixtral-8x7B-v0.1 "
            "has: use --lora-dropout 0, or --target-modules attention",
        ),
        (["gpt2", "--loss", "liger", "--seq-len", "64"], "Liger has no fused loss for openai-community/gpt2"),
        ([], "MODEL"),
    ],
)
def test_bad_input_is_one_line_that_says_how_to_mend_it(estimate: Any, arguments: list[str], said: str) -> None:
    code, out, err = estimate(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lorabench: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("format_", ["table", "markdown", "json", "csv"])
def test_a_sequence_longer_than_the_model_s_is_warned_of(estimate: Any, format_: str) -> None:
    said = "seq_len 2049 is longer than the 2048 positions that EleutherAI/pythia-160m was made for"
    code, out, err = estimate("pythia-160m", "--seq-len", "2049", "--format", format_)
    assert (code, err) == (0, "")
    assert said in " ".join(out.split())
    assert "positions" not in estimate("pythia-160m", "--seq-len", "2048", "--format", format_)[1]


def test_a_rank_that_is_not_low_is_warned_of(estimate: Any) -> None:
    """Llama-3.1-8B's keys and values are 4096 × 1024, and no side of the others is below 4096."""

    def said(rank: int, *others: str) -> str:
        return " ".join(estimate(LLAMA, "--rank", str(rank), *others)[1].split())

    assert "warning" not in said(1023)
    assert "rank 1024 is not low for self_attn.k_proj, self_attn.v_proj, whose full rank is 1024 at most" in said(1024)
    assert "warning" not in said(1024, "--target-modules", "mlp")
    assert "rank 4096 is not low for any matrix that it adapts, whose full rank is 4096 at most" in said(4096)
    adapter, matrix = 1024 * (4096 + 1024), 4096 * 1024
    assert adapter > matrix


@pytest.mark.parametrize(
    ("model", "layers", "experts", "sizes"),
    [("Mixtral-8x7B-v0.1", 32, 8, (4096, 14336)), ("Qwen3-30B-A3B", 48, 128, (2048, 768))],
)
def test_experts_that_stay_unquantised_are_warned_of(
    estimate: Any, model: str, layers: int, experts: int, sizes: tuple[int, int]
) -> None:
    hidden, inner = sizes
    left = layers * experts * (3 * hidden * inner + hidden)
    options = ("--lora-dropout", "0", "--method")
    for preparation, dtype in (("--prepare-kbit", "float32"), ("--no-prepare-kbit", "bfloat16")):
        out = " ".join(estimate(model, *options, "qlora", preparation)[1].split())
        assert f"warning: qlora leaves {left:,} of " in out
        assert f" base weights in {dtype}: transformers 5 keeps experts" in out
    assert "warning" not in estimate(model, *options, "lora")[1]
    assert "warning" not in estimate(LLAMA, *options, "qlora")[1]


@pytest.fixture
def olmo3(tmp_path: Path) -> str:
    """Return the path of a config.json whose architecture has no closed form."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {"model_type": "olmo3", **sizes, "attention_bias": True, "num_attention_heads": 4, "num_key_value_heads": 4}
        )
    )
    return str(path)


def test_an_architecture_without_a_closed_form_is_traced_and_says_so(estimate: Any, olmo3: str) -> None:
    code, out, err = estimate(olmo3, "--seq-len", "64", "--gpu", "24GB", "--require-fit", "-v")
    assert (code, err) == (0, "")
    assert "Traced, because this architecture has no closed form." in out
    assert "; allocator replayed" in " ".join(out.split())
    assert out.startswith("Fits 24GB: at most ")
    assert "not computed by tracing: largest batch, longest sequence, speed" in out
    assert max(map(len, out.splitlines())) <= max(80, len(olmo3) + 10)
    said = json.loads(estimate(olmo3, "--seq-len", "4096", "--gpu", "24GB", "--format", "json")[1])
    assert (said["source"], said["fits"]) == ("trace", True)
    assert "longer than the 2048 positions" in said["warnings"][0]
    assert "largest_batch_size" not in said
    (row,) = csv.DictReader(io.StringIO(estimate(olmo3, "--seq-len", "64", "--format", "csv")[1]))
    assert row["source"] == "trace"
    assert json.loads(estimate("gpt2", "--seq-len", "64", "--format", "json")[1])["source"] == "closed form"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--explain"], "--explain needs a closed form"),
        (["--gpu", "rtx-4090", "--tokens", "1000"], "--tokens needs a speed estimate"),
    ],
)
def test_what_takes_a_closed_form_is_refused_without_one(
    estimate: Any, olmo3: str, arguments: list[str], said: str
) -> None:
    code, out, err = estimate(olmo3, "--seq-len", "64", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_the_allocator_has_the_settings_of_the_option_or_else_of_the_environment(
    estimate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory(*arguments: str) -> dict[str, Any]:
        _, out, _ = estimate("smollm2-135m", "--format", "json", *arguments)
        answer: dict[str, Any] = json.loads(out)["memory"]
        return answer

    default = memory()
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "roundup_power2_divisions:2")
    rounded = memory()
    assert rounded["allocator_settings"] == "roundup_power2_divisions:2"
    assert rounded["components"]["rounding"] > 10 * default["components"]["rounding"]
    assert memory("--alloc-conf", "")["peak_reserved_bytes"] == default["peak_reserved_bytes"]
    _, out, _ = estimate("smollm2-135m", "--no-replay")
    assert "roundup_power2_divisions:2 is not heeded without a replay" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--alloc-conf", "backend:cudaMallocAsync"], "the driver's allocator, which lorabench does not replay"),
        (["--alloc-conf", "max_split_size_mb:1"], "max_split_size_mb too small, must be >= 20"),
        (["--alloc-conf", "per_process_memory_fraction:0.5"], "name one by --gpu"),
        (["--alloc-conf", "max_split_size_mb:64", "--no-replay"], "leave one of them out"),
    ],
)
def test_settings_of_the_allocator_that_mean_nothing_are_refused(
    estimate: Any, arguments: list[str], said: str
) -> None:
    code, _, err = estimate("smollm2-135m", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_a_share_of_the_gpu_is_all_that_a_recipe_may_take(estimate: Any) -> None:
    def verdict(fraction: str) -> str:
        settings = ["--alloc-conf", f"per_process_memory_fraction:{fraction}"]
        _, out, _ = estimate("smollm2-135m", "--gpu", "rtx-4090", *settings, "--format", "json")
        answer: str = json.loads(out)["verdict"]
        return answer

    assert (verdict("0.9"), verdict("0.02")) == ("fits", "does not fit")
