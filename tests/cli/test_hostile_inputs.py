"""Inputs that once hung, flooded or escaped: each ends within limits, with an answer or with one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.check.records import folder, record, repeats
from tests.estimator.speed.test_calibrations import made_up
from tests.sample_records import MODEL_CONFIG

CPU_SECONDS = 10
"""Several times what the slowest case takes, since the time of a loaded machine goes up and down."""
MOST_MIB = 200
ESCAPES = "\x1b]0;pwn\x07"
LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
from lorabench.cli import main
try:
    main()
finally:
    with open("/proc/self/status") as status, open("taken", "w") as taken:
        taken.write(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""
"""Runs lorabench within limits, and leaves its most resident memory, in KiB, in a file."""

Case = Callable[[Path], list[str]]
CASES: dict[str, tuple[str | None, Case]] = {}
"""Name → what the refusal says, None if it is an answer; and a function that writes the input into a folder and returns
the arguments."""


def case(says: str | None) -> Callable[[Case], Case]:
    def keep(make: Case) -> Case:
        CASES[make.__name__.strip("_")] = says, make
        return make

    return keep


def written(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def with_field(where: Path, value: Any, *parts: str) -> str:
    """Return a folder with a record whose field, ``parts`` of it, has ``value``."""
    name = folder(where, record())
    [path] = where.iterdir()
    content = place = json.loads(path.read_text())
    for part in parts[:-1]:
        place = place[part]
    place[parts[-1]] = value
    path.write_text(json.dumps(content))
    return name


def fifo(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    return str(path)


@case("a pipe or a device, not a file")
def _model_is_a_pipe(at: Path) -> list[str]:
    return ["estimate", fifo(at / "model")]


@case("a pipe or a device, not a file")
def _suite_is_a_pipe(at: Path) -> list[str]:
    return ["run", fifo(at / "suite.yaml"), "-o", "out"]


@case("suite.yaml line 1: pipe.json: a pipe or a device, not a file")
def _model_of_a_suite_is_a_pipe(at: Path) -> list[str]:
    fifo(at / "pipe.json")
    return ["run", written(at / "suite.yaml", "matrix: {model: pipe.json}"), "--dry-run"]


@case("a pipe or a device, not a file")
def _checked_record_is_a_pipe(at: Path) -> list[str]:
    fifo(at / "results" / "a.record.json")
    return ["check", "results", "--baseline", "results"]


@case("a pipe or a device, not a file")
def _reported_record_is_a_pipe(at: Path) -> list[str]:
    fifo(at / "results" / "a.record.json")
    return ["report", "results"]


@case("a pipe or a device, not a file")
def _record_has_no_end(at: Path) -> list[str]:
    (at / "results").mkdir()
    (at / "results" / "a.record.json").symlink_to("/dev/zero")
    return ["check", "results", "--against-estimate"]


@case("/proc/kmsg: ")
def _model_is_the_kernel_s_log(at: Path) -> list[str]:
    return ["estimate", "/proc/kmsg"]


@case("a pipe or a device, not a file")
def _calibration_has_no_end(at: Path) -> list[str]:
    return ["estimate", "gpt2", "--gpu", "rtx-4090", "--calibration", "/dev/zero"]


@case("calibration.json: nested too deeply")
def _calibration_is_nested(at: Path) -> list[str]:
    return ["estimate", "gpt2", "--gpu", "rtx-4090", "--calibration", written(at / "calibration.json", "[" * 100_000)]


@case("calibration.json: not UTF-8 text")
def _calibration_is_no_text(at: Path) -> list[str]:
    (at / "calibration.json").write_bytes(b'{"device": "\xff"}')
    return ["estimate", "gpt2", "--gpu", "rtx-4090", "--calibration", "calibration.json"]


@case("forward_seconds must be a number from")
def _calibration_has_a_number_beyond_floats(at: Path) -> list[str]:
    import msgspec

    content = msgspec.to_builtins(made_up()) | {"forward_seconds": 10**300}
    return ["estimate", "gpt2", "--gpu", "rtx-4090", "--calibration", written(at / "calibration.json", content)]


@case("suite.yaml: not a suite: larger than 512 KiB")
def _suite_is_a_list_of_900_kb(at: Path) -> list[str]:
    return ["run", written(at / "suite.yaml", "- a\n" * 225_000), "--dry-run"]


@case("suite.yaml line 1: nested too deeply")
def _suite_is_nested(at: Path) -> list[str]:
    return ["run", written(at / "suite.yaml", "matrix: " + "[" * 100_000), "--dry-run"]


@case("line 2: 60 conditions for each of 10,000 recipes are too many")
def _suite_has_conditions_times_recipes(at: Path) -> list[str]:
    ranks, lengths = list(range(1, 101)), list(range(64, 164))
    matrix = f"matrix: {{model: gpt2, rank: {ranks}, seq_len: {lengths}}}\n"
    entries = "".join(f"  - {{when: {{rank: {rank}}}, use: {{batch_size: 2}}}}\n" for rank in range(1, 61))
    return ["run", written(at / "suite.yaml", f"{matrix}defaults_when:\n{entries}"), "--dry-run"]


@case("line 1: it expands to 20,000 recipes, but at most 10,000 are allowed")
def _suite_has_too_many_recipes(at: Path) -> list[str]:
    text = f"matrix: {{model: gpt2, rank: {list(range(1, 201))}, seq_len: {list(range(64, 164))}}}"
    return ["run", written(at / "suite.yaml", text), "--dry-run"]


@case(None)
def _a_suite_of_9999_recipes_is_listed(at: Path) -> list[str]:
    axes = {"batch_size": list(range(1, 12)), "seq_len": list(range(128, 137)), "rank": list(range(1, 102))}
    return ["run", written(at / "suite.yaml", {"matrix": {"model": "gpt2", **axes}}), "--dry-run", "--gpu", "24GB"]


@case("no causal language model of model_type 'foo_bar': correct it")
def _model_type_is_unknown(at: Path) -> list[str]:
    return ["estimate", written(at / "config.json", MODEL_CONFIG | {"model_type": "foo_bar"})]


@case(None)
def _a_model_has_1024_layers(at: Path) -> list[str]:
    deep = MODEL_CONFIG | {"num_hidden_layers": 1024}
    return ["estimate", written(at / "config.json", deep), "--method", "lora", "--gpu", "24GB", "--explain"]


AXOLOTL = "base_model: gpt2\nadapter: lora\nlora_r: 8\nmicro_batch_size: 1\n"


@case("more than 100 keys that axolotl")
def _a_config_has_9000_unknown_keys(at: Path) -> list[str]:
    keys = "".join(f"unknown_{number}: 1\n" for number in range(9000))
    return ["estimate", "--from", written(at / "axolotl.yaml", AXOLOTL + keys)]


@case("a pipe or a device, not a file")
def _a_config_is_a_pipe(at: Path) -> list[str]:
    return ["recipe", "--from", fifo(at / "axolotl.yaml"), "--as", "trl"]


@case("a pipe or a device, not a file")
def _the_model_of_a_config_is_a_pipe(at: Path) -> list[str]:
    fifo(at / "model.json")
    return ["estimate", "--from", written(at / "axolotl.yaml", AXOLOTL.replace("gpt2", "model.json"))]


@case("target_modules: '(.+)+!' takes too long to match")
def _a_regular_expression_tries_all_ways_to_match(at: Path) -> list[str]:
    return ["estimate", "--from", written(at / "axolotl.yaml", AXOLOTL + "lora_target_modules: '(.+)+!'\n")]


@case("its variables have more than 32,768 characters")
def _variables_of_a_command_double_forty_times(at: Path) -> list[str]:
    lines = ["A=xx", *["A=$A$A"] * 40, "trl sft --model_name_or_path $A"]
    return ["estimate", "--from", written(at / "train.sh", "\n".join(lines))]


@case("its variables have more than 32,768 characters")
def _words_of_a_command_are_variables(at: Path) -> list[str]:
    lines = ["A=" + "x" * 1000, "trl sft --model_name_or_path gpt2 " + "$A " * 10_000]
    return ["estimate", "--from", written(at / "train.sh", "\n".join(lines))]


@case("longer than 32,768 characters")
def _a_quote_of_a_command_has_no_end(at: Path) -> list[str]:
    return ["estimate", "--from", written(at / "train.sh", 'trl sft --x "' + "a " * 400_000)]


@case("model_type must be a name such as llama, not 'xxxxxxxx")
def _model_type_has_a_megabyte(at: Path) -> list[str]:
    return ["estimate", written(at / "config.json", MODEL_CONFIG | {"model_type": "x" * 10**6})]


@case(r"its architecture is '\x1b]0;pwn\x07', not a causal language model")
def _architecture_is_an_escape_sequence(at: Path) -> list[str]:
    return ["estimate", written(at / "config.json", MODEL_CONFIG | {"architectures": [ESCAPES]})]


@case(None)
def _message_of_a_record_is_an_escape_sequence(at: Path) -> list[str]:
    failed = record(outcome="error", message=ESCAPES, device_name=ESCAPES, model=ESCAPES)
    return ["check", folder(at / "after", failed), "--against-estimate"]


@case(None)
def _names_of_a_suite_are_escape_sequences(at: Path) -> list[str]:
    suite = {"name": ESCAPES, "description": ESCAPES, "matrix": {"model": "gpt2"}}
    return ["run", written(at / f"{ESCAPES}.yaml", suite), "--dry-run", "--gpu", "24GB"]


@case("memory.peak_allocated_bytes must be a whole number from 0 to")
def _checked_bytes_are_beyond_floats(at: Path) -> list[str]:
    after = with_field(at / "after", 10**400, "measurement", "memory", "peak_allocated_bytes")
    return ["check", after, "--baseline", folder(at / "before", record())]


@case("memory.peak_allocated_bytes must be a whole number from 0 to")
def _reported_bytes_are_beyond_floats(at: Path) -> list[str]:
    return ["report", with_field(at / "after", 10**400, "measurement", "memory", "peak_allocated_bytes")]


@case("measurement.tokens_per_step must be a whole number from 1 to")
def _tokens_are_beyond_floats(at: Path) -> list[str]:
    return ["report", with_field(at / "after", 10**400, "measurement", "tokens_per_step")]


@case("measurement.parameters.total must be a whole number from 0 to")
def _parameters_are_beyond_floats(at: Path) -> list[str]:
    return ["check", with_field(at / "after", 10**400, "measurement", "parameters", "total"), "--against-estimate"]


@case("measurement.step_seconds[0] must be a number from 1e-09 to")
def _steps_take_longer_than_the_universe(at: Path) -> list[str]:
    return ["check", with_field(at / "after", [1e308] * 9, "measurement", "step_seconds"), "--baseline", "after"]


@case("measurement.step_seconds[0] must be a number from 1e-09 to")
def _steps_take_no_time(at: Path) -> list[str]:
    return ["check", with_field(at / "after", [5e-324] * 9, "measurement", "step_seconds"), "--baseline", "after"]


@case(None)
def _runs_of_3000_steps_are_checked(at: Path) -> list[str]:
    for side, factor in (("before", 1.0), ("after", 1.01)):
        seconds = [factor * (0.4 + 0.0001 * (step * 7919 % 100)) for step in range(3000)]
        folder(at / side, *repeats(3, step_seconds=seconds))
    return ["check", "after", "--baseline", "before"]


@case(None)
def _a_run_of_100000_steps_is_reported(at: Path) -> list[str]:
    seconds = [0.4 + 0.0001 * (step * 7919 % 100) for step in range(100_000)]
    return ["report", folder(at / "long", record(step_seconds=seconds, losses=[5 + second for second in seconds]))]


@pytest.mark.parametrize("name", CASES)
def test_it_ends_within_limits_with_an_answer_or_one_clear_line(tmp_path: Path, name: str) -> None:
    says, make = CASES[name]
    arguments = make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.replace("\n", "").isprintable()
    assert done.stderr.replace("\n", "").isprintable()
    if says is None:
        assert done.returncode in (0, 1, 3), done.stderr
        assert (done.stderr, bool(done.stdout)) == ("", True)
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("lorabench: ")
        assert says in done.stderr
        assert len(done.stderr) < 500
    assert int((tmp_path / "taken").read_text()) / 1024 < MOST_MIB
