"""Whatever becomes of a recipe's process, its record says so and the suite goes on."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lorabench.bench import runner
from lorabench.bench.environment import Surroundings, probe_surroundings
from lorabench.bench.jobs import Answer, Job, Settings
from lorabench.bench.measure import with_rest
from lorabench.bench.records import RunRecord, read_records, write_record
from lorabench.bench.runner import Progress, ask_worker, run_recipe, run_suite
from lorabench.bench.suites import Planned, Suite, load_suite, single_recipe
from lorabench.bench.worker import is_out_of_memory, without_own_folders
from lorabench.estimator.architectures import read_config
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes import make_recipe
from tests.sample_records import sample_record

LLAMA = {
    "model_type": "llama",
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SPEC = read_config(LLAMA, "test/llama")
FACTS = sample_record()
SURROUNDINGS = Surroundings(device=FACTS.device, environment=FACTS.environment)
CPU = Settings(device="cpu", steps=3, warmup_steps=1)


def planned(**options: Any) -> Planned:
    plain = {"dtype": "float32", "mixed_precision": "no", "gradient_checkpointing": False}
    return Planned(make_recipe("test/llama", **{"seq_len": 16, "batch_size": 2, **plain, **options}), SPEC)


def when_started(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[int], None]) -> list[int]:
    """Call ``meddle`` with each worker's process id as soon as it is started; return the list of ids."""
    started: list[int] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self.pid)
            meddle(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    return started


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_recipe_is_trained_and_measured(method: str) -> None:
    record = run_recipe("suite", planned(method=method, rank=2, gradient_accumulation=2), CPU, SURROUNDINGS)
    assert (record.outcome, record.message, record.traceback) == ("ok", None, None)
    measured, predicted = record.measurement, record.prediction
    assert measured is not None
    assert predicted is not None
    assert (len(measured.warmup_step_seconds), len(measured.step_seconds), len(measured.losses)) == (1, 3, 4)
    assert all(seconds > 0 for seconds in (*measured.step_seconds, *measured.warmup_step_seconds))
    assert measured.tokens_per_step == 2 * 2 * 16
    assert all(loss == pytest.approx(math.log(258), rel=0.1) for loss in measured.losses)  # it can only guess yet
    # Adapters on q, k, v, o (32, 32), gate, up (32, 48) and down (48, 32), rank 2.
    assert measured.parameters.trainable == measured.parameters.adapter == 2 * (4 * 64 + 3 * 80)
    assert measured.parameters.quantized == (4 * 32 * 32 + 3 * 32 * 48 if method == "qlora" else 0)
    assert measured.parameters == predicted.parameters
    assert sum(measured.memory.components.values()) == measured.memory.peak_allocated_bytes
    assert measured.memory.peak_allocated_bytes == pytest.approx(predicted.memory.peak_allocated_bytes, rel=0.01)
    assert measured.memory.peak_reserved_bytes is None


def test_a_recipe_too_large_for_the_memory_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4 * 2**30

    def limit_memory(pid: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))

    when_started(monkeypatch, limit_memory)
    # Attention weights of eager attention: 32 sequences · 2 heads · 4096² · 4 B = 4 GiB.
    large = planned(batch_size=32, seq_len=4096, attn_implementation="eager", method="full")
    answer = ask_worker(large, msgspec.structs.replace(CPU, steps=1, warmup_steps=0), 300)
    assert answer.outcome == "oom"
    assert answer.measurement is None
    assert "memory" in str(answer.message)


@pytest.mark.parametrize(
    ("signal_", "outcome", "message"),
    [
        (signal.SIGKILL, "oom", "killed by the kernel, as it does when memory runs out"),
        (signal.SIGSEGV, "error", "the worker ended without an answer: killed by SIGSEGV"),
        (signal.SIGTERM, "error", "the worker ended without an answer: killed by SIGTERM"),
    ],
)
def test_a_killed_worker_is_recorded(
    monkeypatch: pytest.MonkeyPatch, signal_: signal.Signals, outcome: str, message: str
) -> None:
    when_started(monkeypatch, lambda pid: os.kill(pid, signal_))
    record = run_recipe("suite", planned(), CPU, SURROUNDINGS)
    assert (record.outcome, record.message, record.measurement) == (outcome, message, None)
    assert record.prediction is not None


def test_a_hanging_worker_is_ended_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    started = when_started(monkeypatch, lambda pid: os.kill(pid, signal.SIGSTOP))
    record = run_recipe("suite", planned(), CPU, SURROUNDINGS, timeout_seconds=0.2)
    assert (record.outcome, record.message) == ("timeout", "not done after 0.2 s (--timeout)")
    assert not is_running(started[0])


def test_a_worker_that_cannot_start_is_an_error_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    answer = ask_worker(planned(), CPU, 60)
    assert answer.outcome == "error"
    assert str(answer.message).startswith("the worker ended without an answer: exit code 1")
    assert "encodings" in str(answer.traceback)


def test_a_worker_ends_with_its_runner(tmp_path: Path) -> None:
    job = Job(recipe=planned().recipe, spec=SPEC, settings=CPU, answer_path=str(tmp_path / "answer.json"))
    worker = subprocess.Popen([sys.executable, "-m", "lorabench.bench.worker"], stdin=subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.write(msgspec.json.encode(job) + b"\n")
    worker.stdin.close()
    assert worker.wait(60) == 1
    assert not (tmp_path / "answer.json").exists()


def test_what_cannot_run_here_is_an_error_without_a_traceback() -> None:
    answer = ask_worker(planned(optim="paged_adamw_8bit"), CPU, 300)
    assert (answer.outcome, answer.traceback) == ("error", None)
    assert "use adamw_8bit" in str(answer.message)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("memory"), False),
    ],
)
def test_errors_that_mean_out_of_memory_are_known(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_torchs_own_out_of_memory_error_is_known() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


def test_tracebacks_name_no_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("HOME", "/home/somebody")
    text = f'File "{torch.__file__}", line 1\nFile "/home/somebody/work/x.py"\nFile "{os.__file__}"'
    assert without_own_folders(text) == 'File "torch/__init__.py", line 1\nFile "~/work/x.py"\nFile "os.py"'


# Suites.


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    """Stands in for training: method → what its worker answers (ok where nothing is said)."""
    given: dict[str, Answer] = {}

    def answer(planned: Planned, settings: Settings, timeout_seconds: float) -> Answer:
        return given.get(planned.recipe.method, Answer(outcome="ok", measurement=FACTS.measurement))

    monkeypatch.setattr(runner, "ask_worker", answer)
    monkeypatch.setattr(runner, "probe_surroundings", lambda device: SURROUNDINGS)
    return given


def run(folder: Path, suite: Suite | None = None, **options: Any) -> tuple[list[RunRecord], list[Progress]]:
    progress: list[Progress] = []
    return run_suite(suite or load_suite("smoke"), folder, after=progress.append, **options), progress


def test_a_suite_goes_on_after_a_recipe_that_fails(tmp_path: Path, answers: dict[str, Answer]) -> None:
    answers["full"] = Answer(outcome="oom", message="out of memory")
    answers["lora"] = Answer(outcome="error", message="broke", traceback="Traceback")
    records, progress = run(tmp_path / "new" / "out")
    assert [record.outcome for record in records] == ["oom", "error", "ok"]
    assert [(seen.number, seen.of, seen.record) for seen in progress] == [
        (number, 3, record) for number, record in enumerate(records, 1)
    ]
    assert sorted(read_records(tmp_path / "new" / "out"), key=lambda record: record.recipe.method) == sorted(
        records, key=lambda record: record.recipe.method
    )
    assert {record.suite for record in records} == {"smoke"}


def test_a_record_says_what_it_was_trained_on_and_names_no_folder(tmp_path: Path, answers: dict[str, Answer]) -> None:
    suite = single_recipe(SPEC, make_recipe("test/llama"))
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(LLAMA))
    [plain], _ = run(tmp_path / "plain", suite)
    assert (plain.seed, plain.weights, plain.dataset) == (0, "random", None)
    [own], _ = run(tmp_path / "own", suite, seed=3, weights=str(tmp_path), dataset=tmp_path / "text.txt")
    assert (own.seed, own.weights, own.dataset) == (3, "pretrained", "text.txt")
    assert str(tmp_path) not in (tmp_path / "own" / f"{own.digest}.record.json").read_text()


def test_resuming_runs_only_what_is_not_ok(tmp_path: Path, answers: dict[str, Answer]) -> None:
    answers["lora"] = Answer(outcome="timeout", message="slow")
    first, _ = run(tmp_path)
    del answers["lora"]
    answers["full"] = Answer(outcome="error", message="must not run again")
    second, progress = run(tmp_path, resume=True)
    assert [record.outcome for record in second] == ["ok", "ok", "ok"]
    assert [seen.resumed for seen in progress] == [True, False, True]
    assert second[0] == first[0]
    third, _ = run(tmp_path)
    assert third[0].outcome == "error"


def test_records_of_another_suite_are_left_alone(tmp_path: Path, answers: dict[str, Answer]) -> None:
    write_record(tmp_path, sample_record(suite="other"))
    with pytest.raises(UserError, match="holds records of the suite 'other', not 'smoke'"):
        run(tmp_path)
    assert len(read_records(tmp_path)) == 1


def test_single_recipes_share_a_folder(tmp_path: Path, answers: dict[str, Answer]) -> None:
    for rank in (2, 4):
        run(tmp_path, single_recipe(SPEC, make_recipe("test/llama", rank=rank)))
    assert [record.recipe.rank for record in read_records(tmp_path)] in ([2, 4], [4, 2])


@pytest.mark.parametrize("folder", ["file", "file/out"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, answers: dict[str, Answer], folder: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="name another folder with -o") as refused:
        run(tmp_path / folder)
    assert folder in str(refused.value)


def test_a_broken_record_is_refused_before_training(tmp_path: Path, answers: dict[str, Answer]) -> None:
    (tmp_path / "x.record.json").write_text("{")
    with pytest.raises(UserError, match="not a lorabench run record"):
        run(tmp_path)


def test_bad_text_and_weights_are_refused_before_training(tmp_path: Path, answers: dict[str, Answer]) -> None:
    (tmp_path / "bad.jsonl").write_text("{}")
    with pytest.raises(UserError, match="line 1"):
        run(tmp_path / "out", dataset=tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match=r"no folder with \*\.safetensors"):
        run(tmp_path / "out", weights=str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(LLAMA))
    with pytest.raises(UserError, match="they are of another model than lorabench/demo-llama"):
        run(tmp_path / "out", weights=str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_surroundings_name_the_software_and_no_host() -> None:
    told = probe_surroundings("cpu")
    assert told.device.kind == "cpu"
    assert told.device.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= told.environment.packages.keys()
    assert os.uname().nodename not in msgspec.json.encode(told).decode().replace(told.environment.operating_system, "")


def test_asking_for_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"no CUDA device .* use --device cpu"):
        probe_surroundings("cuda")


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (100, {"weights": 50, "activations": 30, "logits": 10, "temporaries": 10, "gradients": 0, "buffers": 0}),
        (95, {"weights": 50, "activations": 30, "logits": 10, "temporaries": 5, "gradients": 0, "buffers": 0}),
        (85, {"weights": 50, "activations": 25, "logits": 10, "temporaries": 0, "gradients": 0, "buffers": 0}),
        (55, {"weights": 50, "activations": 0, "logits": 5, "temporaries": 0, "gradients": 0, "buffers": 0}),
    ],
)
def test_components_add_up_to_what_the_allocator_counts(total: int, expected: dict[str, int]) -> None:
    counted = {"weights": 50, "activations": 30, "logits": 10, "temporaries": 4, "gradients": 0, "buffers": 0}
    assert with_rest(counted, total) == expected
