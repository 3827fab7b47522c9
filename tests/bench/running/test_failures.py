from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from lorabench.bench.machine.host_memory import available_bytes, kernel_kills
from lorabench.bench.records.text import without_own_folders
from lorabench.bench.running.failures import answer_of, answer_of_crashed_worker, which_memory
from lorabench.bench.training.losses import complaint_about


@pytest.mark.parametrize(
    ("error", "on_cpu", "on_cuda"),
    [
        (MemoryError(), "host", "host"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "device", "device"),
        (RuntimeError("CUDA error: out of memory"), "device", "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "device", "device"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), "host", "host"),
        (OSError(12, "Cannot allocate memory"), "host", "host"),
        (RuntimeError("Error out of memory at line 68 in file ops.cu"), "host", "device"),
        (RuntimeError("shape mismatch"), None, None),
        (ValueError("memory"), None, None),
    ],
)  # fmt: skip
def test_errors_that_mean_out_of_memory_tell_which(error: Exception, on_cpu: Any, on_cuda: Any) -> None:
    assert (which_memory(error, "cpu"), which_memory(error, "cuda")) == (on_cpu, on_cuda)
    answer = answer_of(error, "cuda", "Traceback")
    assert (answer.outcome, answer.out_of) == ("error" if on_cuda is None else "oom", on_cuda)
    assert answer.traceback == ("Traceback" if on_cuda is None else None)


@pytest.mark.parametrize(
    ("kernel_kills", "outcome", "out_of", "message"),
    [
        (1, "oom", "killed", "killed by the kernel's OOM killer"),
        (0, "error", None, "the worker ended without an answer: killed by SIGKILL, but not by the OOM killer"),
        (None, "oom", "killed", "killed by SIGKILL, probably by the kernel's OOM killer (this system does not "
         "report its kills)"),
    ],
)  # fmt: skip
def test_a_kill_by_the_kernel_is_told_from_any_other(
    kernel_kills: int | None, outcome: str, out_of: str | None, message: str
) -> None:
    answer = answer_of_crashed_worker(-signal.SIGKILL, "", "cuda", kernel_kills)
    assert (answer.outcome, answer.out_of, answer.message) == (outcome, out_of, message)


def test_a_signal_without_a_name_has_its_number() -> None:
    assert "killed by signal 40" in str(answer_of_crashed_worker(-40, "", "cpu", 0).message)


def test_tracebacks_name_no_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    text = f'File "{torch.__file__}", line 1\nFile "/home/somebody/work/x.py"\nFile "{os.__file__}"'
    assert without_own_folders(text) == 'File "torch/__init__.py", line 1\nFile "~/work/x.py"\nFile "os.py"'


def test_messages_name_no_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    raised = answer_of(OSError("/home/somebody/weights: too short"), "cpu", "")
    died = answer_of_crashed_worker(1, "/home/somebody/weights: too short", "cpu", 0)
    assert raised.message == "OSError: ~/weights: too short"
    assert died.message == "the worker ended without an answer: exit code 1: ~/weights: too short"


def test_messages_are_as_they_are_where_no_home_folder_is_known(no_home: None) -> None:
    assert answer_of(OSError("/home/somebody/weights"), "cpu", "").message == "OSError: /home/somebody/weights"


@pytest.mark.parametrize(
    ("losses", "complaint"),
    [
        ([5.0, 4.0, 3.0, 2.0], None),
        ([5.0, None, 3.0, None], "the loss was not finite in 2 of 4 steps, first in step 2"),
        ([None], "the loss was not finite in 1 of 1 steps, first in step 1"),
        ([2.0, 3.0, 4.0, 5.0], "the loss diverged: at most 2 in the first quarter, at least 5 in the last"),
        ([2.0, 2.1, 2.0, 2.2], None),  # 10 % more is what a batch may differ
        ([2.0, 2.1, 2.0, 2.3], "the loss diverged: at most 2 in the first quarter, at least 2.3 in the last"),
        ([2.0, 9.0, 2.0, 2.0, 2.0, 2.0, 9.0, 2.0], None),  # steps that stand alone
        ([2.0, 9.0, 9.0], None),  # no quarter to speak of
        ([], None),
    ],
)  # fmt: skip
def test_losses_that_are_not_finite_or_diverge_are_complained_about(
    losses: list[float | None], complaint: str | None
) -> None:
    assert complaint_about(losses) == complaint


@pytest.fixture
def files(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand in for /proc and /sys/fs/cgroup."""

    def put(**content: str) -> None:
        for name, text in content.items():
            path = tmp_path / name.replace("__", "/").replace("DOT", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr("lorabench.bench.machine.host_memory.PROC", tmp_path / "proc")
    monkeypatch.setattr("lorabench.bench.machine.control_groups.MOUNT", tmp_path / "cgroup")
    monkeypatch.setattr("lorabench.bench.machine.control_groups.MEMBERSHIP", tmp_path / "proc" / "self" / "cgroup")
    return put


MEMINFO = "MemTotal:       16000 kB\nMemFree:  100 kB\nMemAvailable:    9000 kB\n"


def test_available_memory_is_the_kernels_within_the_containers_limit(files: Any) -> None:
    assert available_bytes() is None
    files(proc__meminfo=MEMINFO)
    assert available_bytes() == 9000 * 1024
    files(cgroup__memoryDOTmax="max\n", cgroup__memoryDOTcurrent="500\n")
    assert available_bytes() == 9000 * 1024
    files(cgroup__memoryDOTmax="4000000\n", cgroup__memoryDOTcurrent="1000000\n")
    assert available_bytes() == 3_000_000
    files(cgroup__memory__memoryDOTlimit_in_bytes="500\n", cgroup__memory__memoryDOTusage_in_bytes="600\n")
    assert available_bytes() == 0


def test_the_kernels_kills_are_the_containers_where_it_counts_them(files: Any) -> None:
    assert kernel_kills() is None
    files(proc__vmstat="nr_free_pages 5\noom_kill 7\n")
    assert kernel_kills() == 7
    files(cgroup__memoryDOTevents="low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert kernel_kills() == 2


def test_this_machine_says_both() -> None:
    available = available_bytes()
    assert available is not None
    assert 0 < available <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert kernel_kills() is not None


def test_out_of_memory_says_at_which_line_outside_torch() -> None:
    def loss_of_a_model() -> None:
        torch.nn.functional.linear(*(torch.empty(2, 2, device="meta").expand(2, 2) for _ in range(2))).item()

    with pytest.raises(RuntimeError) as raised:
        loss_of_a_model()
    ran_out = torch.OutOfMemoryError("CUDA out of memory.").with_traceback(raised.value.__traceback__)
    told = str(answer_of(ran_out, "cuda", "").message)
    assert told.startswith("OutOfMemoryError: CUDA out of memory.; at torch.nn.functional.linear(")
    assert "test_failures.py:" in told
