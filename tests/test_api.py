"""What people import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import lorabench
from lorabench.bench.records.record import write_record
from lorabench.cli import lorabench as command_line
from lorabench.estimator.speed.calibrations import file_name, user_folder
from tests.estimator.speed.test_calibrations import made_up
from tests.sample_records import sample_record
from tests.small_models import small_config


def test_estimate_answers_in_one_call() -> None:
    answer = lorabench.estimate("llama-3.1-8b", method="qlora", rank=16, gpu="24GB")
    assert answer.recipe == lorabench.make_recipe("meta-llama/Llama-3.1-8B", method="qlora", rank=16)
    assert answer.parameters.trainable == 41_943_040
    assert answer.fits is True
    assert answer.gpu_usable_bytes == 24 * 2**30 - 768 * 2**20
    assert answer.memory.device_total_range_bytes is not None
    assert answer.margin_bytes == answer.gpu_usable_bytes - answer.memory.device_total_range_bytes[1]


def test_estimate_takes_a_model_and_a_gpu_that_were_found_before(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_config("qwen2")))
    spec = lorabench.find_model(str(tmp_path))
    device = lorabench.find_device("rtx-4090")
    assert lorabench.estimate(spec, gpu=device) == lorabench.estimate(spec, gpu="rtx-4090")
    assert lorabench.estimate(spec).fits is None


def test_a_path_is_a_model_even_where_a_name_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    Path("gpt2", "config.json").write_text(json.dumps(small_config("qwen2")))
    assert lorabench.find_model(Path("gpt2")).model_type == "qwen2"
    assert lorabench.estimate(Path("gpt2", "config.json"), seq_len=64).memory == (
        lorabench.estimate("gpt2/config.json", seq_len=64).memory
    )
    assert lorabench.find_model("gpt2").model_type == "gpt2"


def test_a_grid_has_the_peak_of_every_batch_and_length() -> None:
    peaks = lorabench.estimate_grid("gpt2", [[1], [4]], [64, 128, 256], method="qlora", gpu="h100-sxm")
    assert peaks.shape == (2, 3)
    one = lorabench.estimate("gpt2", method="qlora", batch_size=4, seq_len=128, gpu="h100-sxm", replay=False)
    assert peaks[1, 1] == one.memory.peak_allocated_bytes
    with pytest.raises(lorabench.UserError, match="learned positions for 1024 tokens"):
        lorabench.estimate_grid("gpt2", 1, [64, 2048])


def test_a_grid_has_the_speed_of_every_batch_and_length() -> None:
    grid = lorabench.estimate_throughput_grid("gpt2", [[1], [4]], [64, 128, 256], method="qlora", gpu="h100-sxm")
    one = lorabench.estimate("gpt2", method="qlora", batch_size=4, seq_len=128, gpu="h100-sxm").throughput
    assert one is not None
    assert grid.tokens_per_second.shape == (2, 3)
    assert grid.tokens_per_second[1, 1] == pytest.approx(one.tokens_per_second)
    assert grid.step_seconds_range[1][1, 1] == pytest.approx(one.step_seconds_range[1])
    for gpu, said in [("24GB", "not its speed: pass a GPU name"), ("h100-sxm", "learned positions for 1024 tokens")]:
        with pytest.raises(lorabench.UserError, match=said):
            lorabench.estimate_throughput_grid("gpt2", 1, [64, 2048], gpu=gpu)


def test_a_gpu_that_was_calibrated_is_as_fast_as_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    user_folder().mkdir(parents=True)
    (user_folder() / file_name("rtx-4090")).write_bytes(msgspec.json.encode(made_up()))
    one = lorabench.estimate("llama-3.1-8b", seq_len=512, gpu="rtx-4090").throughput
    assert one is not None
    assert one.rates == "calibrated"
    grid = lorabench.estimate_throughput_grid("llama-3.1-8b", 1, [256, 512], gpu="rtx-4090")
    assert grid.tokens_per_second[1] == pytest.approx(one.tokens_per_second)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": None}, "name a MODEL, or the config of another tool"),
        ({"model": 3}, "a model is a name or a path, and 3 is neither"),
        ({"gpu": True}, "a GPU is a name, or a size such as 24GB, and True is neither"),
        ({"target_modules": ["c_attn", "c_fc"]}, "write 'c_attn,c_fc'"),
    ],
)
def test_what_is_of_another_kind_is_a_user_error(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(lorabench.UserError, match=said):
        lorabench.estimate(**{"model": "gpt2", "seq_len": 64, **arguments})
    with pytest.raises(lorabench.UserError, match="in rows of equal length"):
        lorabench.estimate_grid("gpt2", [[1], [2, 3]], 64)


def test_a_default_that_a_model_cannot_have_is_switched_and_said() -> None:
    estimate = lorabench.estimate("gpt2")
    assert estimate.recipe == lorabench.make_recipe("gpt2") == lorabench.make_recipe(lorabench.find_model("gpt2"))
    assert estimate.recipe.seq_len == 1024
    (said,) = estimate.assumptions
    assert said == "seq_len 1024 instead of 2048: openai-community/gpt2 has learned positions for 1024 tokens"
    assert lorabench.estimate("gpt2", seq_len=1024).assumptions == ()
    peaks = lorabench.estimate_grid("gemma-2-2b", 1, [2048])
    assert (
        peaks[0]
        == lorabench.estimate("gemma-2-2b", attn_implementation="eager", replay=False).memory.peak_allocated_bytes
    )


def test_a_gpu_is_named_as_on_the_command_line() -> None:
    assert lorabench.estimate("llama-3.1-8b", gpu=24) == lorabench.estimate("llama-3.1-8b", gpu="24GB")
    assert lorabench.find_device("a100-80gb").name == "a100-sxm-80gb"
    assert lorabench.estimate("mixtral-8x7b", gpu="a100-80gb").assumptions == (
        "model mixtral-8x7b means mistralai/Mixtral-8x7B-v0.1, not mistralai/Mixtral-8x7B-Instruct-v0.1 (of the same "
        "shapes)",
        "target_modules attention instead of all-linear: peft has no dropout for adapters of fused experts, which "
        "mistralai/Mixtral-8x7B-v0.1 has",
        "gpu a100-80gb means a100-sxm-80gb, not a100-pcie-80gb (as much memory, another speed)",
    )


def test_a_length_is_written_as_on_the_command_line() -> None:
    assert lorabench.estimate("llama-3.1-8b", seq_len="4k") == lorabench.estimate("llama-3.1-8b", seq_len=4096)
    with pytest.raises(lorabench.UserError, match="seq_len: 'long' is not a length: write whole tokens, such as 4096"):
        lorabench.estimate("llama-3.1-8b", seq_len="long")


def test_wrong_options_are_a_user_error() -> None:
    with pytest.raises(lorabench.UserError, match="did you mean rank"):
        lorabench.estimate("gpt2", rnk=8)  # type: ignore[call-arg]
    with pytest.raises(lorabench.UserError, match="no such folder"):
        lorabench.read_records("no-such-folder")


def test_everything_that_is_promised_is_there_and_documented() -> None:
    for name in lorabench.__all__:
        assert getattr(lorabench, name).__doc__


def test_an_estimate_imports_nothing_heavy() -> None:
    program = (
        "import sys, lorabench; lorabench.estimate('gpt2', seq_len=64)\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'pandas', 'rich') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_a_plan_is_that_of_the_command() -> None:
    found = lorabench.plan("smollm2-135m", gpu="t4", method="lora", seq_len=512)
    arguments = ["plan", "smollm2-135m", "--gpu", "t4", "--method", "lora", "--seq-len", "512", "--format", "json"]
    said = json.loads(CliRunner().invoke(command_line, arguments).output)
    assert [one.margin_bytes for one in found.choices] == [one["margin_bytes"] for one in said["choices"]]
    assert found.tried == said["tried"]


def test_a_comparison_has_the_estimates_of_all_combinations() -> None:
    found = lorabench.compare("smollm2-135m", gpu=["t4", 24], rank=[4, 8], seq_len=512, replay=False)
    assert len(found.estimates) == 2 * (1 + 2 + 2)
    for one in found.estimates:
        rank: Any = {} if one.recipe.rank is None else {"rank": one.recipe.rank}
        own = lorabench.estimate(
            "smollm2-135m", gpu=one.gpu, method=one.recipe.method, seq_len=512, replay=False, **rank
        )
        assert one == own


def test_time_and_cost_of_a_training_are_in_the_throughput() -> None:
    speed = lorabench.estimate("smollm2-135m", gpu="t4", seq_len=512, tokens=10**6, price_per_hour=2).throughput
    assert speed is not None
    assert speed.training is not None
    assert speed.training.seconds == pytest.approx(10**6 / speed.tokens_per_second)
    assert speed.training.cost == pytest.approx(2 * speed.training.seconds / 3600)


def test_records_are_checked_and_reported(tmp_path: Path) -> None:
    write_record(tmp_path, sample_record())
    assert lorabench.check(tmp_path, baseline=tmp_path).verdict == "same"
    assert [one.digest for one in lorabench.read_records(tmp_path)] == [sample_record().digest]
    page = lorabench.report(tmp_path, output=tmp_path / "page.html")
    assert page.read_text(encoding="utf-8").endswith("</html>")
    for refused, said in (
        (lambda: lorabench.check(tmp_path, sped=0.1), "no tolerance sped: choose from memory"),
        (lambda: lorabench.check(tmp_path / "no"), "no such folder"),
        (lambda: lorabench.report(), "nothing to report"),
        (lambda: lorabench.rehearse("smollm2-135m", gpu="rtx-9999"), "no GPU 'rtx-9999'"),
        (lambda: lorabench.run("no-suite", output=tmp_path), "no suite 'no-suite'"),
    ):
        with pytest.raises(lorabench.UserError, match=said):
            refused()
