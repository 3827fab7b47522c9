"""`lorabench run`, `doctor` and `calibrate` on null GPUs: whatever comes of them is no measurement."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from lorabench.bench.machine.doctor import diagnose
from lorabench.bench.machine.gpu_probe import PROBES, read_answers
from lorabench.bench.null_gpu.environment import null_gpu_environment
from lorabench.bench.records.record import RunRecord, read_records
from lorabench.estimator.devices.device import find_device
from tests.bench.null_gpu.conftest import Run
from tests.bench.null_gpu.machine import CONFIG, held_but_for
from tests.bench.running.test_workers import gone

pytestmark = pytest.mark.cuda_build
GPU = find_device("h200")
METHODS = ("lora", "qlora", "full")


def lorabench(*arguments: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lorabench", *arguments]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def suite_in(folder: Path) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    model = str(folder / "model" / "config.json")
    recipes = [{"model": model, "method": method, "seq_len": 64, "batch_size": 1} for method in METHODS]
    path = folder / "telling.yaml"
    path.write_text(json.dumps({"name": "telling", "probe": True, "steps": 1, "warmup_steps": 1, "include": recipes}))
    return path


class Ran:
    """A suite on two of three null GPUs, of which others fill the third: interrupted, then resumed."""

    def __init__(self, folder: Path) -> None:
        notes = folder / "notes"
        notes.mkdir()
        self.results = folder / "results"
        variables = null_gpu_environment(GPU, notes, gpus=3)
        arguments = ["run", str(suite_in(folder)), "-o", str(self.results), "--resume"]
        with held_but_for(0, variables, gpu=0):
            here = variables | {"CUDA_VISIBLE_DEVICES": "2,1"}
            first = lorabench(*arguments, environment=here)
            until = time.monotonic() + 300
            while not list(self.results.glob("*.record.json")):
                assert time.monotonic() < until, "no recipe ended"
                assert first.poll() is None, first.communicate()
                time.sleep(0.02)
            first.send_signal(signal.SIGTERM)
            self.interrupted_out, self.interrupted_err = first.communicate(timeout=60)
            self.interrupted_code = first.returncode
            self.interrupted = read_records(self.results)
            self.processes = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _uses(path, notes)]
            second = lorabench(*arguments, environment=here)
            self.out, self.err = second.communicate(timeout=500)
            self.code = second.returncode
        self.records: list[RunRecord] = read_records(self.results)


def _uses(process: Path, notes: Path) -> bool:
    """Return whether a process computes on the cards of ``notes`` and is none that holds their memory."""
    try:
        return (
            str(notes).encode() in (process / "environ").read_bytes()
            and b"lorabench" in (process / "cmdline").read_bytes()
        )
    except OSError:
        return False


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("suite"))


def test_an_interrupted_run_ends_all_its_processes_and_says_how_to_go_on(ran: Ran) -> None:
    assert ran.interrupted_code == 130, ran.interrupted_err
    assert 1 <= len(ran.interrupted) < 3
    said = re.search(r"interrupted after (\d) of 3 recipes; continue with: lorabench run", ran.interrupted_err)
    assert said is not None, ran.interrupted_err
    assert len(ran.interrupted) - int(said[1]) in (0, 1)  # the signal may come between a record and its count
    assert all(gone(process) for process in ran.processes)


def test_recipes_run_on_the_gpus_that_are_visible_and_a_resumed_run_keeps_what_is_there(ran: Ran) -> None:
    assert ran.code == 0, ran.out + ran.err
    assert {record.outcome for record in ran.records} == {"ok"}  # on the first card there was no memory
    kept = {record.digest: record for record in ran.interrupted}
    assert all(record == kept[record.digest] for record in ran.records if record.digest in kept)
    assert "rehearsed earlier" in ran.out


def test_records_are_rehearsals_and_hold_no_time_loss_or_energy(ran: Ran) -> None:
    for record in ran.records:
        assert (record.rehearsed, record.measurement, record.seconds) == (True, None, None)
        assert record.rehearsal is not None
        assert record.environment.driver is not None
        assert "null GPU" in record.environment.driver
        kept = msgspec.to_builtins(record.rehearsal)
        assert not any(word in name for name in kept for word in ("seconds", "loss", "joules", "nvml", "mhz", "tokens"))
        assert kept["memory"]["device_total_bytes"] is None


def test_each_probe_has_a_line_of_its_own_once_without_what_a_null_gpu_cannot_know(ran: Ran) -> None:
    answers = read_answers(ran.results / "probe.jsonl")
    assert [answer.probe for answer in answers] == list(PROBES)
    assert [answer.error for answer in answers] == [None] * len(PROBES)
    assert all(answer.rehearsed for answer in answers)
    assert "context_bytes" not in (ran.results / "probe.jsonl").read_text()
    found = {answer.probe: answer.found for answer in answers}
    assert found["workspaces"] == {"both_threads_bytes": 2 * 2**25, "one_thread_bytes": 2**25}
    assert found["device"]["gpus"] == 2
    assert "CUDA context" not in ran.out


def test_the_table_that_closes_it_has_errors_of_memory_alone(ran: Ran) -> None:
    lines = ran.out.splitlines()
    [title] = [number for number, line in enumerate(lines) if line.startswith("recipe")]
    assert lines[title].split() == ["recipe", "requested", "allocated", "reserved"]
    table = "\n".join(lines[title:])
    assert table.count("%") == 3 * 3
    assert "rehearsed on a null GPU: nothing was measured" in table
    assert max(map(len, lines)) <= 80 or str(ran.results) in ran.out


def test_the_doctor_runs_each_of_its_trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in null_gpu_environment(GPU, tmp_path).items():
        monkeypatch.setenv(name, value)
    told = diagnose("cuda")
    assert (told.ready, told.can_train) == (True, ("full", "lora", "qlora", "ia3")), told.checks
    assert [gpu.name for gpu in told.gpus] == [GPU.title]
    found = {check.name: check.found for check in told.checks}
    assert "computes nothing" in found["null GPU"]
    assert "computes no values" in found["quantisation"]


def test_a_calibration_runs_each_measurement_and_writes_nothing(run_on: Run, tmp_path: Path) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        from pathlib import Path
        from lorabench.bench.machine import calibrate
        from lorabench.cli import main
        calibrate.PRODUCT_EXTENTS = {"cuda": (16, 128)}
        calibrate.PASS_ELEMENTS = calibrate.DEQUANTISED_ELEMENTS = {"cuda": (2**12, 2**16)}
        calibrate.LEAST_SECONDS, calibrate.HOST_STEPS = 0.001, 3
        try:
            main(["calibrate", "--dtype", "bfloat16", "-o", sys.argv[1]])
        except SystemExit as stopped:
            tell(code=stopped.code, written=Path(sys.argv[1]).exists())
        """,
        str(tmp_path / "calibration.json"),
    )
    assert told.values == {"code": 0, "written": False}
