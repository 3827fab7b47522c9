"""Whatever becomes of a worker, of the server that it is forked from, or of the runner is seen, and none is left."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.jobs import Job, JobResult
from lorabench.bench.running.workers import END_SECONDS, Workers
from lorabench.bench.running.workers import SERVER as REAL_SERVER
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.bench.pretend_training import HOW, ROOT, SERVER
from tests.small_models import TINY, small_config

# Rows are whole blocks of 64: of others bitsandbytes computes wrong losses on some CPUs, and the answer says so.
LLAMA = small_config("llama", **{**TINY, "intermediate_size": 128})
SPEC = read_config(LLAMA, "test/llama")


def job(method: str = "lora", **options: Any) -> Job:
    plain = {"dtype": "float32", "mixed_precision": "no", "gradient_checkpointing": False}
    recipe = make_recipe("test/llama", **{"method": method, "seq_len": 16, "batch_size": 2, **plain, **options})
    settings = Settings(backend="cpu", steps=3, warmup_steps=1, least_seconds=0.01)
    return Job(resolved=ResolvedRecipe(SPEC, recipe), settings=settings)


def heard(bell: Path, kind: str = "worker", count: int = 1) -> list[dict[str, Any]]:
    """Return what so many workers left, waiting until they have."""
    until = time.monotonic() + 120
    while len(found := sorted(bell.glob(f"*.{kind}"))) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} came"
        time.sleep(0.01)
    return [json.loads(path.read_text()) for path in found]


def gone(pid: int) -> bool:
    """Wait until the process has ended; return whether it has within a minute."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 60)[0])
    finally:
        os.close(handle)


def answer_of(workers: Workers, number: int) -> JobResult:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        answers = workers.wait(0.5)
        if number in answers:
            return answers[number]
    raise AssertionError("no answer")


@pytest.fixture
def workers(tmp_path: Path, bell: Path) -> Iterator[Workers]:
    with Workers(tmp_path, command=SERVER) as started:
        yield started


ENDED = "the worker ended without an answer"


def behave(how: str) -> dict[str, str]:
    return {HOW: json.dumps({"lora": how})}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("segfault", ("error", None, f"{ENDED}: killed by SIGSEGV")),
        ("kill", ("error", None, f"{ENDED}: killed by SIGKILL, but not by the OOM killer")),
        ("exit", ("error", None, f"{ENDED}: exit code 1: SystemExit: no more of this")),
        ("say and exit", ("oom", "device", f"{ENDED}: exit code 3: CUDA error: out of memory")),
        ("fill the memory", ("oom", "host", "MemoryError")),
        ("raise", ("error", None, "broke")),
    ],
)  # fmt: skip
def test_how_a_worker_ended_is_its_answer(workers: Workers, how: str, expected: tuple[str, str | None, str]) -> None:
    answer = answer_of(workers, workers.start(job(), behave(how)))
    assert (answer.outcome, answer.out_of, answer.message) == expected
    assert answer.measurement is None
    after = answer_of(workers, workers.start(job(), {}))
    assert after.outcome == "ok"


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group that may take 64 MiB, where this process may make one."""
    for mount, limits in (
        ("memory", ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")),
        ("", ("memory.max", "memory.swap.max")),
    ):
        group = Path("/sys/fs/cgroup") / mount / f"lorabench-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limits[0]).exists():
                for limit in limits:
                    if (group / limit).exists():
                        (group / limit).write_text(str(2**26) if limit != "memory.swap.max" else "0")
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("no control group can be made here")


def test_a_worker_that_the_kernel_kills_for_its_memory_is_out_of_memory(workers: Workers, small_group: Path) -> None:
    group = {"LORABENCH_PRETEND_GROUP": str(small_group / "cgroup.procs")}
    answer = answer_of(workers, workers.start(job(), behave("fill the memory of a group") | group))
    assert (answer.outcome, answer.out_of) == ("oom", "killed")
    assert answer.message == "killed by the kernel's OOM killer"


@pytest.mark.parametrize("how", ["hang", "stop"])
def test_a_worker_that_hangs_or_is_stopped_can_be_ended(workers: Workers, bell: Path, how: str) -> None:
    number = workers.start(job(), behave(how))
    [worker] = heard(bell)
    assert workers.wait(0.1) == {}
    workers.end(number)
    assert answer_of(workers, number).message == f"{ENDED}: killed by SIGKILL, but not by the OOM killer"
    assert gone(worker["pid"])


def test_a_worker_can_be_ended_before_it_has_begun(workers: Workers) -> None:
    numbers = [workers.start(job(), behave("hang")) for _ in range(5)]
    for number in numbers:
        workers.end(number)
    assert all(answer_of_any.outcome == "error" for answer_of_any in _all(workers, numbers))


def _all(workers: Workers, numbers: list[int]) -> list[JobResult]:
    answers: dict[int, JobResult] = {}
    until = time.monotonic() + 120
    while len(answers) < len(numbers):
        assert time.monotonic() < until
        answers |= workers.wait(1)
    return list(answers.values())


def test_what_a_worker_leaves_behind_ends_with_it(workers: Workers, bell: Path) -> None:
    assert answer_of(workers, workers.start(job(), behave("leave a child"))).outcome == "ok"
    [child] = heard(bell, "child")
    assert gone(child["pid"])


def test_workers_end_when_the_server_dies_and_the_next_gets_another(workers: Workers, bell: Path) -> None:
    hanging = workers.start(job("full"), {HOW: '{"full": "hang"}'})
    heard(bell)
    killing = workers.start(job(), behave("kill the server"))
    answers = _all(workers, [hanging, killing])
    said = "the server that forks workers ended: killed by SIGKILL"
    assert [(answer.outcome, answer.message) for answer in answers] == [("error", said)] * 2
    assert all(gone(worker["pid"]) for worker in heard(bell, count=2))
    assert answer_of(workers, workers.start(job(), {})).outcome == "ok"


def test_workers_end_when_the_runner_is_killed(tmp_path: Path, bell: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.pretend_training", "run", "smoke", "-o", str(tmp_path / "out")],
        env={**os.environ, HOW: '{"full": "hang"}'},
        cwd=ROOT,
    )
    [worker] = heard(bell)
    server = int(Path(f"/proc/{worker['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    running.kill()
    running.wait()
    assert gone(worker["pid"])
    assert gone(server)


def test_each_worker_has_the_variables_it_was_given_and_a_session_of_its_own(workers: Workers, bell: Path) -> None:
    for device in ("0", "1"):
        number = workers.start(job(), {"CUDA_VISIBLE_DEVICES": device})
        assert answer_of(workers, number).outcome == "ok"
    seen = heard(bell, count=2)
    assert sorted(worker["environ"]["CUDA_VISIBLE_DEVICES"] for worker in seen) == ["0", "1"]
    assert {worker["environ"]["OMP_WAIT_POLICY"] for worker in seen} == {"passive"}
    assert len({worker["pid"] for worker in seen} | {worker["session"] for worker in seen}) == 2
    assert {worker["oom_score_adj"] for worker in seen} == {1000}


def test_a_server_that_cannot_start_is_refused_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise ImportError('libcudart is not there')"]
    with (
        Workers(tmp_path, command=command) as workers,
        pytest.raises(UserError, match=r"^no worker can be started: exit code 1: ImportError: libcudart is not there$"),
    ):
        workers.start(job(), {})


def test_scratch_space_that_is_full_is_said_before_a_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Workers
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**23))
    with pytest.raises(UserError, match=rf"^{tmp_path.parent}: no space for the answers of workers: set TMPDIR"):
        workers.start(job(), {})
    monkeypatch.undo()
    (tmp_path / "2.job").mkdir()
    with pytest.raises(UserError, match=r"cannot write here: Is a directory: set TMPDIR"):
        workers.start(job(), {})


def test_a_server_that_still_imports_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    with Workers(tmp_path, command=["sleep", "600"]):
        pass
    assert time.monotonic() - began < END_SECONDS / 2


FRESH = """
import sys
from lorabench.bench.running import server
server.preload = lambda: None
server.cuda_survives_a_fork = lambda: False
server.main()
"""


def test_where_cuda_survives_no_fork_a_worker_is_a_fresh_process(tmp_path: Path) -> None:
    with Workers(tmp_path, command=[sys.executable, "-c", FRESH]) as workers:
        refused = msgspec.structs.replace(
            job(), settings=msgspec.structs.replace(job().settings, dataset="missing.txt")
        )
        answer = answer_of(workers, workers.start(refused, {}))
        assert workers.forks is False
    assert (answer.outcome, answer.traceback) == ("error", None)
    assert str(answer.message).startswith("missing.txt: cannot read the dataset")


AS_ASYNCIO_DOES = """
import os, signal
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
from tests.bench.pretend_training import serve
serve()
"""


def test_workers_start_where_a_library_puts_signals_right_in_every_forked_process(tmp_path: Path, bell: Path) -> None:
    """From Python 3.12 on asyncio does, which the libraries import."""
    with Workers(tmp_path, command=[sys.executable, "-c", AS_ASYNCIO_DOES]) as workers:
        assert answer_of(workers, workers.start(job(), {})).outcome == "ok"


# Workers that really train.


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    modules = ["transformers.models.llama.modeling_llama", "no.such.module"]
    with Workers(tmp_path_factory.mktemp("scratch"), preload=modules, command=REAL_SERVER) as workers:
        yield workers


def test_forked_workers_train_and_inherit_nothing_from_each_other(training: Workers) -> None:
    def losses(one: Job) -> tuple[float | None, ...]:
        answer = answer_of(training, training.start(one, {}))
        assert (answer.outcome, answer.message, answer.traceback) == ("ok", None, None)
        assert answer.measurement is not None
        return answer.measurement.losses

    assert losses(job("qlora", rank=2)) == losses(job("qlora", rank=2))
    assert training.forks is True


def test_a_worker_starts_in_less_time_than_its_imports_take(training: Workers) -> None:
    refused = job(optim="paged_adamw_8bit")  # at once on a CPU, after all else is there
    answer_of(training, training.start(refused, {}))  # the server has its imports
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    imported = time.monotonic()
    answer = answer_of(training, training.start(refused, {}))
    assert time.monotonic() - imported < imported - began
    assert (answer.outcome, answer.traceback) == ("error", None)
    assert "use adamw_8bit" in str(answer.message)


def test_a_recipe_too_large_for_the_memory_is_out_of_memory(training: Workers) -> None:
    # One weight of 2¹⁸ · 2²⁴ · 4 B = 16 TiB.
    large = read_config({**LLAMA, "hidden_size": 2**18, "intermediate_size": 2**24}, "test/large")
    small = job("full")
    too_large = msgspec.structs.replace(small, resolved=ResolvedRecipe(large, small.resolved.recipe))
    answer = answer_of(training, training.start(too_large, {}))
    assert (answer.outcome, answer.out_of) == ("oom", "host")
    assert "allocate" in str(answer.message)


def test_a_job_and_its_answer_are_removed_when_it_has_ended(workers: Workers, tmp_path: Path) -> None:
    answer_of(workers, workers.start(job(), {}))
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".job", ".answer")] == []
