"""Whatever files and arguments hold, a command ends soon, in little memory, with an answer or with one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lorabench.bench.suites.suite_file import KEYS
from lorabench.cli import COMMANDS, main
from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.sources import TOOLS, tool_of
from lorabench.estimator.models.catalogue import CONFIGS
from lorabench.estimator.models.read_config import MODEL_TYPES
from lorabench.estimator.recipes.recipe import SETTINGS
from tests.estimator.speed.test_calibrations import made_up
from tests.hostile_values import VALUES, nested, spoilt
from tests.limits import limited
from tests.sample_records import MODEL_CONFIG, as_rehearsed, sample_record

CPU_SECONDS = 5.0
MIB = 400
"""Beyond what the process has. Each is several times what the slowest example takes."""

Lorabench = Callable[..., tuple[object, str, str]]


def fuzz(examples: int) -> settings:
    """Return settings for so many examples; their folder is the same, as each writes all files that it reads."""
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, suppress_health_check=slow)


@pytest.fixture
def ends_well(capsys: pytest.CaptureFixture[str]) -> Lorabench:
    """Run ``lorabench`` within limits; return its exit code, output and errors, after a look at their form."""

    def run(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped, limited(cpu_seconds=CPU_SECONDS, mib=MIB):
            main([*arguments])
        code, (out, err) = stopped.value.code, capsys.readouterr()
        assert code in (0, 1, 2, 3)
        assert out.replace("\n", "").isprintable()
        assert err.replace("\n", "").isprintable()
        if code == 2:
            assert err.startswith("lorabench: ")
            assert err.count("\n") == 1
            assert len(err) < 3000
        return code, out, err

    return run


def _configs() -> list[dict[str, Any]]:
    """Return the config of the smallest shipped model of each family with a closed form."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for path in sorted(CONFIGS.glob("*/*.json")):
        config = json.loads(path.read_bytes())
        family = config.get("model_type")
        layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
        if family in MODEL_TYPES and (family not in found or layers < found[family][0]):
            found[family] = layers, config
    return [config for _, config in found.values()]


CONFIGURATIONS = _configs()


@fuzz(300)
@given(config=st.sampled_from(CONFIGURATIONS).flatmap(spoilt))
def test_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_well: Lorabench, config: Any) -> None:
    def unknown(config: dict[str, Any], name: str) -> None:
        raise UserError(f"{name}: transformers was not asked")

    # What transformers' own code does with a config is not ours to bound.
    monkeypatch.setattr("lorabench.estimator.models.introspect.introspect", unknown)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    ends_well("estimate", str(path), "--gpu", "24GB", "--no-replay", "--batch-size", "1", "--seq-len", "64")


SUITE = {
    "name": "sweep",
    "description": "of ranks",
    "steps": 5,
    "warmup_steps": 1,
    "repeats": 2,
    "probe": False,
    "defaults": {"seq_len": 64, "batch_size": 1},
    "defaults_when": [{"when": {"method": ["full", "ia3"]}, "use": {"batch_size": 2, "optim": "sgd"}}],
    "matrix": {"model": ["gpt2"], "method": ["full", "lora"], "rank": [8, 16]},
    "include": [{"model": "gpt2", "method": "lora", "target_modules": "attention", "lora_dropout": 0.1}],
    "exclude": [{"method": "lora", "rank": 16}],
    "check": {"speed": "5%", "nvml": "off"},
}


@fuzz(300)
@given(suite=spoilt(SUITE))
@example(suite={"steps": "\U00010000"})
def test_suites(tmp_path: Path, ends_well: Lorabench, suite: Any) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(json.dumps(suite))
    ends_well("run", str(path), "--dry-run", "--gpu", "rtx-4090")


WORDS = [*KEYS, *SETTINGS, *("when", "use", "gpt2", "lora", "8", "~", "true", "!!x", "&a", "*a", "<<", "...", "---")]
MARKS = [*("\n", "\n  ", "\n    ", "\n- ", ": ", ", ", "[", "]", "{", "}", '"', "'", "|", ">", "?", "%", "@", "`", "#")]


@fuzz(300)
@given(text=st.lists(st.sampled_from(WORDS + 2 * MARKS) | st.text(max_size=3)).map("".join))
@example("[" * 100_000)
@example("matrix: {" * 50_000)
@example("- a\n" * 100_000)
@example('name: "' + "\\n" * 250_000 + '"')
@example("a: " + "x " * 250_000)
@example("? " * 100_000)
def test_texts_of_suites(tmp_path: Path, ends_well: Lorabench, text: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    ends_well("run", str(path), "--dry-run", "--gpu", "24GB")


GPT2 = "openai-community/gpt2"
OF_OTHER_TOOLS: list[dict[str, Any]] = [
    {
        "base_model": GPT2,
        "adapter": "lora",
        "lora_r": 8,
        "lora_target_modules": ["c_attn"],
        "sequence_len": 64,
        "micro_batch_size": 2,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "deepspeed": "zero2.json",
        "plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"],
    },
    {"peft_type": "LORA", "base_model_name_or_path": GPT2, "r": 8, "target_modules": ["c_attn"], "rank_pattern": {}},
    {
        "model": {"_component_": "torchtune.models.llama3_1.qlora_llama3_1_8b", "lora_attn_modules": ["q_proj"]},
        "tokenizer": {"_component_": "torchtune.models.llama3.llama3_tokenizer", "max_seq_len": 64},
        "optimizer": {"_component_": "torch.optim.AdamW", "fused": True},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "batch_size": 2,
    },
    {"model": "unsloth/Meta-Llama-3.1-8B", "training": {"max_steps": 3, "batch_size": 2}, "lora": {"lora_r": 8}},
    {"model_name_or_path": GPT2, "stage": "sft", "finetuning_type": "lora", "lora_target": "all", "cutoff_len": 64},
    {"model_name_or_path": GPT2, "dataset_name": "x", "use_peft": True, "max_length": 64, "lora_r": 8},
    {"distributed_type": "NO", "mixed_precision": "fp16", "deepspeed_config": {"zero_stage": 2}},
    {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": "auto"}},
    {"per_device_train_batch_size": 2, "optim": "sgd", "gradient_checkpointing": True},
]
"""A config of each tool that is read."""


def test_a_config_of_each_tool_is_tried() -> None:
    assert [tool_of(config) for config in OF_OTHER_TOOLS] == [*TOOLS]


@fuzz(300)
@given(
    config=st.sampled_from(OF_OTHER_TOOLS).flatmap(spoilt),
    ending=st.sampled_from([".yml", ".json"]),
    target=st.sampled_from([(), ("gpt2",)]),
    asked=st.sampled_from([("estimate", "--no-replay"), ("recipe", "--as", "trl"), ("recipe", "--as", "python")]),
)
@example(config=OF_OTHER_TOOLS[2] | {"loss": None}, ending=".yml", target=(), asked=("estimate",))
@example(
    config={"base_model": "gpt2", "micro_batch_size": 1} | {f"unknown_{number}": number for number in range(9000)},
    ending=".json",
    target=(),
    asked=("estimate",),
)
def test_configs_of_other_tools(
    tmp_path: Path,
    ends_well: Lorabench,
    config: Any,
    ending: str,
    target: tuple[str, ...],
    asked: tuple[str, ...],
) -> None:
    path = tmp_path / f"config{ending}"
    path.write_text(json.dumps(config))
    command, *options = asked
    ends_well(command, *target, "--from", str(path), *options)


COMMAND = """A=$A$A
MODEL=gpt2
trl sft --model_name_or_path $MODEL --use_peft --lora_target_modules c_attn x \\
 --max-length=64"""
PIECES = [
    *COMMAND.split(" "),
    "\n",
    "'",
    '"',
    "$",
    "${A}",
    "\\",
    "--",
    "=",
    "#",
    "#!",
    "llamafactory-cli",
    "--stage",
    "sft",
]


@fuzz(200)
@given(words=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=20))
@example(words=["A=xx\n", "A=$A$A\n" * 40, "trl sft --model_name_or_path $A"])
@example(words=['trl sft --x "', "a " * 400_000])
@example(words=["trl sft", " --a" * 200_000])
def test_commands_of_other_tools(tmp_path: Path, ends_well: Lorabench, words: list[str]) -> None:
    path = tmp_path / "train.sh"
    path.write_bytes(" ".join(words).encode(errors="surrogatepass"))
    ends_well("estimate", "--from", str(path), "--no-replay")


RECORD = msgspec.to_builtins(
    sample_record(
        backend="cuda",
        device_name="NVIDIA H200",
        step_seconds=[0.1 * share for share in (1.0, 1.1, 1.2, 1.0, 1.3, 1.1)],
    )
)
REHEARSED = msgspec.to_builtins(as_rehearsed(sample_record(backend="cuda", device_name="NVIDIA H200")))
KEPT = ("digest", "recipe", "model_config")
"""With any other, a record is refused as edited."""


@st.composite
def records(draw: st.DrawFn) -> Any:
    whole = draw(st.sampled_from([RECORD, RECORD, RECORD, REHEARSED]))
    spoiled = draw(spoilt({key: value for key, value in whole.items() if key not in KEPT}))
    return {key: whole[key] for key in KEPT} | spoiled if isinstance(spoiled, dict) else spoiled


@fuzz(300)
@given(record=records(), raw=st.none() | st.binary(max_size=50))
@example(record=nested(60), raw=b"[" * 100_000)
@example(record={"schema_version": 10**400}, raw=None)
@example(record=RECORD | {"device": RECORD["device"] | {"compute_capability": ""}}, raw=None)
def test_records(tmp_path: Path, ends_well: Lorabench, record: Any, raw: bytes | None) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, content in ((before, json.dumps(RECORD).encode()), (after, raw or json.dumps(record).encode())):
        folder.mkdir(exist_ok=True)
        (folder / "one.record.json").write_bytes(content)
    code, _, err = ends_well("check", str(after), "--baseline", str(before))
    if code == 2:
        assert str(after) in err or "baseline" in err or "results" in err
    ends_well("check", str(before), "--baseline", str(after), "--format", "markdown")
    ends_well("check", str(after), "--against-estimate")


@fuzz(20)
@given(record=records())
def test_reported_records(tmp_path: Path, ends_well: Lorabench, record: Any) -> None:
    for number, content in enumerate((RECORD, record)):
        (tmp_path / f"{number}.record.json").write_text(json.dumps(content))
    ends_well("report", str(tmp_path), "-o", str(tmp_path / "page.html"))


CALIBRATION = msgspec.to_builtins(made_up())


@fuzz(150)
@given(calibration=spoilt(CALIBRATION), raw=st.none() | st.binary(max_size=50))
@example(calibration={}, raw=b"[" * 100_000)
@example(calibration={}, raw=b'{"device": "\xff"}')
def test_calibrations(tmp_path: Path, ends_well: Lorabench, calibration: Any, raw: bytes | None) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(raw or json.dumps(calibration).encode())
    arguments = ("estimate", "gpt2", "--gpu", "rtx-4090", "--no-replay", "--calibration", str(path))
    code, _, err = ends_well(*arguments)
    if code == 2:
        assert str(path) in err or "calibration of" in err


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Return arguments of a command that ends without training: its options, and values that fit or do not."""
    command = draw(
        st.sampled_from(["estimate", "estimate", "plan", "recipe", "gpus", "models", "check", "run", "report", "x"])
    )
    values = (
        st.sampled_from(["gpt2", "24GB", "rtx-4090", "lora", "full", "8", "64", "json", "csv", "1e9", "5%", "nowhere"])
        | VALUES.map(lambda value: value if isinstance(value, str) else json.dumps(value)[:5000])
        | st.text(max_size=10)
    )
    options = ["--gpu", "--method", "--rank", "--batch-size", "--seq-len", "--format", "--tokens", "--price-per-hour"]
    options += ["--baseline", "--allow", "--suite", "--speed-tolerance", "--alloc-conf", "--calibration", "--explain"]
    options += [
        "--target-modules",
        "--optim",
        "--lora-dropout",
        "--all-gpus",
        "--require-fit",
        "-q",
        "-h",
        "--as",
        "--from",
        "--",
    ]
    given = draw(st.lists(st.sampled_from(options) | values, max_size=8))
    quick = {"run": ["--dry-run"], "estimate": ["--no-replay"], "report": ["-o", "/proc/self/task/page.html"]}
    return [command, *quick.get(command, []), *(word.replace("\0", "") for word in given)]


@fuzz(400)
@given(arguments=command_lines())
def test_command_lines(ends_well: Lorabench, arguments: list[str]) -> None:
    ends_well(*arguments)


def test_every_command_has_a_kind_of_input_here_or_trains() -> None:
    trains = {"trace", "rehearse", "calibrate", "doctor"}
    assert set(COMMANDS) - trains == {"estimate", "plan", "gpus", "models", "check", "run", "report", "recipe"}
    assert MODEL_CONFIG["model_type"] in MODEL_TYPES
