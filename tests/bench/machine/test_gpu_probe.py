"""Each probe of a GPU stands alone: one that fails, hangs or kills the process loses its own answer only."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lorabench.bench.machine import gpu_probe
from lorabench.bench.machine.gpu_probe import Answer, probe_gpu, read_answers, summary
from lorabench.bench.records.text import name_end
from lorabench.estimator.errors import UserError


def probes(monkeypatch: pytest.MonkeyPatch, **made: Any) -> None:
    """Let these be the probes, run in forked processes rather than in fresh ones that would not know them."""
    monkeypatch.setattr(gpu_probe, "PROBES", made)

    def forked(path: Path, environment: object) -> str:
        child = os.fork()
        if child == 0:
            faulthandler.disable()  # pytest's would print where a probe dies on purpose
            try:
                gpu_probe.main(str(path))
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return "" if code == 0 else name_end(code)

    monkeypatch.setattr(gpu_probe, "_run_process", forked)


def test_a_probe_that_fails_or_dies_loses_its_own_answer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("no kernel\nfor this device")

    def dies() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
        return {}

    probes(monkeypatch, one=lambda: {"x": 1}, two=fails, three=dies, four=lambda: {"y": 2})
    answers = {answer.probe: answer for answer in probe_gpu(tmp_path / "new" / "probe.jsonl")}
    assert list(answers) == ["one", "two", "three", "four"]
    assert (answers["one"].found, answers["four"].found) == ({"x": 1}, {"y": 2})
    assert answers["two"].error == "RuntimeError: no kernel"
    assert answers["three"].error == "the process ended: killed by SIGSEGV"


def test_answers_that_are_there_are_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes(monkeypatch, one=lambda: {"x": 1})
    path = tmp_path / "probe.jsonl"
    probe_gpu(path)
    probes(monkeypatch, one=lambda: {"x": 2}, two=lambda: {"x": 3})
    assert [answer.found["x"] for answer in probe_gpu(path)] == [1, 3]


def test_a_rehearsed_probe_keeps_neither_times_nor_values_nor_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"at": {"context_bytes": 3, "reserved_bytes": 5}, "looks_ms": 0.1, "largest_error": 1.0, "kernel": "flash"}
    probes(monkeypatch, one=lambda: found)
    monkeypatch.setenv("NULL_GPU_NAME", "NVIDIA Example")
    [answer] = probe_gpu(tmp_path / "probe.jsonl", rehearsing=True)
    assert (answer.found, answer.seconds) == ({"at": {"reserved_bytes": 5}, "kernel": "flash"}, 0.0)
    assert answer.rehearsed


@pytest.mark.parametrize("rehearsing", [False, True])
def test_answers_of_a_rehearsal_are_not_taken_for_those_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsing: bool
) -> None:
    probes(monkeypatch, one=lambda: {"x": 1})
    if not rehearsing:
        monkeypatch.setenv("NULL_GPU_NAME", "NVIDIA Example")
    probe_gpu(tmp_path / "probe.jsonl", rehearsing=not rehearsing)
    of_what = "a GPU" if rehearsing else "a rehearsal"
    with pytest.raises(UserError, match=f"has answers of {of_what}: name another folder with -o, or remove the file"):
        probe_gpu(tmp_path / "probe.jsonl", rehearsing=rehearsing)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "probe.jsonl").write_text("not json\n")
    with pytest.raises(UserError, match=r"probe\.jsonl: not a probe's answers .*: remove the file"):
        read_answers(tmp_path / "probe.jsonl")


def test_without_a_gpu_every_real_probe_but_the_versions_says_why(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    answers = {answer.probe: answer for answer in probe_gpu(tmp_path / "probe.jsonl")}
    assert list(answers) == list(gpu_probe.PROBES)
    assert answers["versions"].found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(answer.error for name, answer in answers.items() if name != "versions")


def test_the_summary_names_the_context_and_what_failed() -> None:
    answers = [
        Answer(probe="context", found={"after init": {"context_bytes": 2**20}, "later": {"context_bytes": 2**29}}),
        Answer(probe="triton", error="RuntimeError: no C compiler"),
    ]
    assert list(summary(answers)) == [
        "CUDA context: 512 MiB in this process",
        "probe triton: RuntimeError: no C compiler",
    ]
