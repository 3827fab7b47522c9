"""Whatever becomes of a recipe, its record says so, the suite goes on, and a resumed suite takes up what is left."""

from __future__ import annotations

import itertools
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lorabench.bench.machine.environment import Surroundings
from lorabench.bench.records.record import DeviceFacts, read_records, write_record
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running import fit, runner
from lorabench.bench.running.runner import Finished, Progress, Watcher, predict, run_suite
from lorabench.bench.running.sources import SourceDigests, check_sources
from lorabench.bench.running.tasks import Lane, lanes_of, tasks_of
from lorabench.bench.suites.suite import Suite, single_recipe
from lorabench.bench.suites.suite_file import load_suite
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.bench.pretend_training import BELL, FACTS, HOW, ROOT, pretend_here
from tests.bench.running.test_workers import LLAMA
from tests.sample_records import as_rehearsed, sample_record

SPEC = read_config(LLAMA, "test/llama")
SETTINGS = Settings(backend="cpu", steps=3, warmup_steps=1)
PICK = single_recipe(ResolvedRecipe(SPEC, make_recipe("test/llama")))
GPU = DeviceFacts(backend="cuda", name="NVIDIA Example 24GB", memory_bytes=24 * 2**30)


@pytest.fixture(autouse=True)
def pretending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every worker pretends to train; ``behave`` says how."""
    (tmp_path / "bell").mkdir()
    monkeypatch.setenv(BELL, str(tmp_path / "bell"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    pretend_here(monkeypatch.setattr)
    return monkeypatch


def behave(patch: pytest.MonkeyPatch, **how: str) -> None:
    patch.setenv(HOW, json.dumps(how))


class Listener(Watcher):
    def __init__(self) -> None:
        self.seen: list[Progress] = []
        self.notices: list[str] = []

    def prepared(self, tasks: object, lanes: object, notices: Any) -> None:
        self.notices += notices

    def ended(self, progress: Progress) -> None:
        self.seen.append(progress)


class Hour(Listener):
    """Puts the runner's clock an hour ahead while the worker of ``method`` runs, and then gives that the word."""

    def __init__(self, patch: pytest.MonkeyPatch, bell: Path, method: str) -> None:
        super().__init__()
        self.bell, self.method, self.ahead = bell, method, 0.0
        patch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + self.ahead))

    def waiting(self) -> None:
        if any(json.loads(path.read_text())["method"] == self.method for path in self.bell.glob("*.worker")):
            self.ahead = 3600.0
            (self.bell / "go").touch()


def run(
    folder: Path, suite: Suite | None = None, listener: Listener | None = None, **options: Any
) -> tuple[Finished, list[Progress]]:
    listener = listener or Listener()
    settings = options.pop("settings", SETTINGS)
    finished = run_suite(suite or load_suite("smoke"), folder, settings=settings, watcher=listener, **options)
    return finished, listener.seen


def outcomes(finished: Finished) -> list[str]:
    return [record.outcome for record in finished.records]


def methods_run(tmp_path: Path) -> list[str]:
    """Return the methods that workers were started on since the last call, in the order of the alphabet."""
    bells = list((tmp_path / "bell").glob("*.worker"))
    methods = sorted(json.loads(bell.read_text())["method"] for bell in bells)
    for bell in bells:
        bell.unlink()
    return methods


def test_a_suite_goes_on_after_recipes_that_fail(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    behave(pretending, full="say and exit", lora="raise")
    finished, seen = run(tmp_path / "new" / "out")
    assert outcomes(finished) == ["oom", "error", "ok"]
    assert finished.left == 0
    oom, error, ok = finished.records
    assert (oom.out_of, oom.measurement) == ("device", None)
    assert (error.out_of, error.message, error.traceback) == (None, "broke", "Traceback")
    assert (ok.message, ok.measurement) == (None, FACTS.measurement)
    assert [(one.number, one.record) for one in seen] == list(enumerate(finished.records, 1))
    assert sorted(read_records(tmp_path / "new" / "out"), key=lambda r: r.recipe.method) == list(finished.records)
    for record in finished.records:
        assert record.suite == "smoke"
        assert record.prediction is not None
        assert (record.device, record.environment) == (FACTS.device, FACTS.environment)


def test_a_recipe_that_hangs_is_ended_when_its_time_is_up(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    behave(pretending, lora="stop")
    hour = Hour(pretending, tmp_path / "bell", "lora")
    finished, _ = run(tmp_path / "out", listener=hour, timeout_seconds=1800)
    assert outcomes(finished) == ["ok", "timeout", "ok"]
    assert finished.records[1].message == "took over 1800 s (--timeout)"


def test_a_recipe_ends_with_the_server_and_the_suite_goes_on(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    behave(pretending, full="kill the server")
    finished, _ = run(tmp_path / "out")
    assert outcomes(finished) == ["error", "ok", "ok"]
    assert "the server that forks workers ended" in str(finished.records[0].message)
    assert methods_run(tmp_path) == ["full", "lora", "qlora"]
    behave(pretending)
    finished, _ = run(tmp_path / "out", resume=True)
    assert outcomes(finished) == ["ok", "ok", "ok"]
    assert methods_run(tmp_path) == ["full"]


def test_a_clock_that_is_set_back_loses_nothing(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    yesterdays = (datetime(2026, 3, 14, tzinfo=UTC) - timedelta(days=days) for days in itertools.count())
    pretending.setattr(runner, "datetime", SimpleNamespace(now=lambda zone: next(yesterdays)))
    behave(pretending, lora="raise")
    finished, _ = run(tmp_path / "out")
    assert outcomes(finished) == ["ok", "error", "ok"]
    assert [record.started_at[:10] for record in finished.records] == ["2026-03-14", "2026-03-13", "2026-03-12"]
    assert all(record.seconds is not None and record.seconds >= 0 for record in finished.records)
    methods_run(tmp_path)
    behave(pretending)
    finished, _ = run(tmp_path / "out", resume=True)
    assert outcomes(finished) == ["ok", "ok", "ok"]
    assert methods_run(tmp_path) == ["lora"]
    assert finished.records[1].started_at[:10] == "2026-03-11"


def test_a_record_says_what_it_was_asked_for_and_names_no_folder(tmp_path: Path) -> None:
    suite = msgspec.structs.replace(
        single_recipe(ResolvedRecipe(SPEC, make_recipe("test/llama"))), steps=7, warmup_steps=2
    )
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(LLAMA))
    asked = Settings(backend="cpu", steps=7, warmup_steps=2)
    plain = run(tmp_path / "plain", suite, settings=asked)[0].records[0]
    assert (plain.seed, plain.weights, plain.dataset, plain.dataset_digest) == (0, "random", None, None)
    assert (plain.steps, plain.warmup_steps, plain.engine, plain.repeat) == (7, 2, "lorabench", 0)
    of_another = msgspec.structs.replace(asked, seed=3, weights=str(tmp_path), dataset=str(tmp_path / "text.txt"))
    own = run(tmp_path / "own", suite, settings=of_another)[0].records[0]
    # printf words | sha256sum
    assert (own.seed, own.weights, own.dataset, own.dataset_digest) == (3, "pretrained", "text.txt", "dba36bffa5ca")
    assert str(tmp_path) not in (tmp_path / "own" / own.file_name).read_text()


# Resuming.


def test_resuming_runs_what_is_not_ok_or_out_of_memory(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    behave(pretending, full="fill the memory", lora="raise")
    first, _ = run(tmp_path / "out")
    behave(pretending)
    assert methods_run(tmp_path) == ["full", "lora", "qlora"]
    second, seen = run(tmp_path / "out", resume=True)
    assert outcomes(second) == ["oom", "ok", "ok"]
    assert (second.records[0], second.records[2]) == (first.records[0], first.records[2])
    assert [(one.task.resolved.recipe.method, one.resumed) for one in seen] == [
        ("full", True),
        ("qlora", True),
        ("lora", False),
    ]
    assert methods_run(tmp_path) == ["lora"]
    assert outcomes(run(tmp_path / "out")[0]) == ["ok", "ok", "ok"]
    assert methods_run(tmp_path) == ["full", "lora", "qlora"]


def test_resuming_runs_first_what_never_ran(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    behave(pretending, full="raise")
    finished, _ = run(tmp_path / "out")
    (tmp_path / "out" / finished.records[2].file_name).unlink()
    _, seen = run(tmp_path / "out", resume=True)
    assert [one.task.resolved.recipe.method for one in seen] == ["lora", "qlora", "full"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 4},
        {"warmup_steps": 2},
        {"dataset": "b.txt"},
        {"weights": "hub"},
        {"engine": "trainer"},
        {"timeline": True},
    ],
)
def test_a_record_that_was_asked_for_otherwise_is_not_taken(change: dict[str, Any]) -> None:
    [task] = tasks_of(PICK, msgspec.structs.replace(SETTINGS, dataset="a.txt"), SourceDigests())
    record = sample_record()
    record = msgspec.structs.replace(record, digest=task.resolved.digest, recipe=task.resolved.recipe, **task.facts)
    assert task.differences(record) == []
    [other] = tasks_of(PICK, msgspec.structs.replace(SETTINGS, **{"dataset": "a.txt", **change}), SourceDigests())
    assert other.differences(record) == list(change)


def test_a_record_of_a_text_that_has_changed_is_not_taken(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, dataset=str(tmp_path / "text.txt"))
    resumed = []
    for text in ("before", "before", "after"):
        (tmp_path / "text.txt").write_text(text)
        resumed += [one.resumed for one in run(tmp_path / "out", PICK, settings=settings, resume=True)[1]]
    assert resumed == [False, True, False]


def test_records_of_other_weights_are_not_taken_whatever_their_folder(tmp_path: Path) -> None:
    resumed = []
    for folder, shards in (("a", b"12"), ("copy of a", b"12"), ("b", b"13"), ("c", b"31")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_bytes(msgspec.json.encode(LLAMA))
        for number, byte in enumerate(shards):
            (tmp_path / folder / f"model-{number}.safetensors").write_bytes(bytes([byte]))
        settings = msgspec.structs.replace(SETTINGS, weights=str(tmp_path / folder))
        finished, seen = run(tmp_path / "out", PICK, settings=settings, resume=True)
        resumed += [one.resumed for one in seen]
    assert resumed == [False, True, False, False]
    write_record(tmp_path / "out", msgspec.structs.replace(finished.records[0], weights_digest=None))
    assert [one.resumed for one in run(tmp_path / "out", PICK, settings=settings, resume=True)[1]] == [False]


def test_weights_without_a_name_are_not_those_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(LLAMA))
    (tmp_path / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    check_sources(PICK, msgspec.structs.replace(SETTINGS, weights="."))
    with pytest.raises(UserError, match="not a folder with"):
        check_sources(PICK, msgspec.structs.replace(SETTINGS, weights=""))


def test_what_will_be_replaced_is_said_before(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    def notices(**options: Any) -> list[str]:
        listener = Listener()
        run(tmp_path / "out", listener=listener, **options)
        return listener.notices

    folder = f"{tmp_path}/out"
    behave(pretending, full="raise")
    assert notices() == []
    behave(pretending)
    assert notices() == [f"{folder}: 2 records will be replaced (--resume keeps them)"]
    assert notices(resume=True) == []
    otherwise = msgspec.structs.replace(SETTINGS, seed=1, warmup_steps=2)
    assert notices(resume=True, settings=otherwise) == [
        f"{folder}: 3 records will be replaced (they differ in seed, warmup steps; another folder with -o keeps them)"
    ]


def test_records_that_are_kept_from_another_environment_are_spoken_of(
    tmp_path: Path, pretending: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    run(tmp_path / "out")
    run(tmp_path / "out", listener=listener, resume=True)
    assert listener.notices == []
    environment = FACTS.environment
    packages = {**environment.packages, "torch": "2.99.0", "liger-kernel": "1.0"}
    elsewhere = msgspec.structs.replace(environment, packages=packages, cpu_threads=environment.cpu_threads + 1)
    pretend_here(pretending.setattr, Surroundings(device=FACTS.device, environment=elsewhere))
    run(tmp_path / "out", listener=listener, resume=True)
    assert listener.notices == [
        f"{tmp_path}/out: 3 kept records are from another environment (CPU threads, liger-kernel, torch)"
    ]


def test_a_changed_recipe_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    for rank in (2, 4):
        suite = single_recipe(ResolvedRecipe(SPEC, make_recipe("test/llama", rank=rank)))
        assert [one.resumed for one in run(tmp_path / "out", suite, resume=True)[1]] == [False]
    assert sorted(record.recipe.rank or 0 for record in read_records(tmp_path / "out")) == [2, 4]


def test_repeats_have_seeds_and_records_of_their_own(tmp_path: Path) -> None:
    suite = msgspec.structs.replace(load_suite("smoke"), repeats=3)
    settings = msgspec.structs.replace(SETTINGS, seed=5)
    finished, _ = run(tmp_path / "out", suite, settings=settings)
    assert [(record.recipe.method, record.repeat, record.seed) for record in finished.records] == [
        (method, repeat, 5 + repeat) for repeat in range(3) for method in ("full", "lora", "qlora")
    ]
    assert len(read_records(tmp_path / "out")) == 9
    seeds = [json.loads(bell.read_text())["seed"] for bell in (tmp_path / "bell").glob("*.worker")]
    assert sorted(seeds) == [5, 5, 5, 6, 6, 6, 7, 7, 7]
    (tmp_path / "out" / finished.records[4].file_name).unlink()
    _, seen = run(tmp_path / "out", suite, settings=settings, resume=True)
    assert [one.task.label for one in seen if not one.resumed] == ["demo-llama lora r16 1×128 ckpt #2"]


def test_what_there_is_no_time_for_is_left_and_what_ran_then_leaves_no_record(
    tmp_path: Path, pretending: pytest.MonkeyPatch
) -> None:
    behave(pretending, lora="hang")
    hour = Hour(pretending, tmp_path / "bell", "lora")
    finished, _ = run(tmp_path / "out", listener=hour, time_limit_seconds=1800)
    assert (outcomes(finished), finished.left) == (["ok"], 2)
    assert [record.recipe.method for record in read_records(tmp_path / "out")] == ["full"]
    behave(pretending)
    finished, _ = run(tmp_path / "out", time_limit_seconds=60, resume=True)
    assert (outcomes(finished), finished.left) == (["ok", "ok", "ok"], 0)


def test_no_recipe_starts_that_would_not_be_done_in_time(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    behave(pretending, full="wait for the word")
    hour = Hour(pretending, tmp_path / "bell", "full")
    finished, _ = run(tmp_path / "out", listener=hour, timeout_seconds=7000, time_limit_seconds=7000)
    assert (outcomes(finished), finished.left) == (["ok"], 2)
    assert methods_run(tmp_path) == ["full"]


# Devices.


def test_recipes_run_side_by_side_one_on_each_gpu_of_the_kind(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    pretending.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pretend_here(pretending.setattr, Surroundings(device=GPU, equal_devices=(0, 2), environment=FACTS.environment))
    behave(pretending, full="meet", lora="meet")
    finished, _ = run(tmp_path / "out")
    assert outcomes(finished) == ["ok", "ok", "ok"]
    seen = [json.loads(bell.read_text()) for bell in (tmp_path / "bell").glob("*.worker")]
    devices = {worker["method"]: worker["environ"]["CUDA_VISIBLE_DEVICES"] for worker in seen}
    assert {devices["full"], devices["lora"]} == {"0", "2"}
    assert devices["qlora"] in ("0", "2")
    assert {record.device for record in finished.records} == {GPU}


@pytest.mark.parametrize(
    ("chosen", "equal_devices", "expected"),
    [
        (None, (0,), [{}]),
        ("3", (0,), [{}]),
        (None, (0, 1), [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        ("3, 5,7", (0, 2), [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "7"}]),
        ("GPU-a,GPU-b", (0, 1), [{"CUDA_VISIBLE_DEVICES": "GPU-a"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}]),
    ],
)
def test_a_lane_is_one_of_the_gpus_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, equal_devices: tuple[int, ...], expected: list[dict[str, str]]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    surroundings = Surroundings(device=GPU, equal_devices=equal_devices, environment=FACTS.environment)
    assert lanes_of(surroundings) == [Lane(GPU, environment) for environment in expected]


def test_what_is_predicted_not_to_fit_is_skipped_on_demand(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    suite = msgspec.structs.replace(
        load_suite("smoke"), recipes=(load_suite("smoke").recipes[1], *_planned("llama-3.1-8b", "qwen2.5-14b"))
    )
    pretend_here(pretending.setattr, Surroundings(device=GPU, environment=FACTS.environment))
    finished, _ = run(tmp_path / "out", suite, skip_unfit=True)
    assert outcomes(finished) == ["ok", "skipped", "skipped"]
    assert methods_run(tmp_path) == ["lora"]
    message = str(finished.records[1].message)
    assert message.startswith("predicted not to fit: ")
    assert message.endswith(" MiB of 24,576 MiB (--skip-unfit)")
    finished, seen = run(tmp_path / "out", suite, resume=True)
    assert [one.resumed for one in seen] == [True, False, False]
    assert outcomes(finished) == ["ok", "ok", "ok"]


def _planned(*models: str) -> Any:
    from lorabench.estimator.models.catalogue import find_model

    specs = [find_model(model) for model in models]
    return [single_recipe(ResolvedRecipe(spec, make_recipe(spec.name, method="full"))).recipes[0] for spec in specs]


def test_on_a_cpu_a_recipe_is_held_against_what_the_host_can_hand_out(
    tmp_path: Path, pretending: pytest.MonkeyPatch
) -> None:
    finished, _ = run(tmp_path / "before")
    need = [record.prediction.memory.peak_allocated_bytes for record in finished.records if record.prediction]
    pretending.setattr(fit, "available_bytes", lambda: sorted(need)[1])
    finished, _ = run(tmp_path / "out", skip_unfit=True)
    assert [outcome == "skipped" for outcome in outcomes(finished)] == [bytes_ > sorted(need)[1] for bytes_ in need]


def test_what_is_predicted_is_for_the_very_gpu() -> None:
    """cuBLAS works in 32 MiB a thread on Hopper, in 8 MiB before it: so torch sizes its workspaces."""
    peaks = {}
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"):
        predicted = predict(PICK.recipes[0], DeviceFacts(backend="cuda", name=name, memory_bytes=80 * 2**30))
        assert predicted is not None
        peaks[name] = predicted.memory.components["workspaces"]
    assert peaks["NVIDIA H100 80GB HBM3"] - peaks["NVIDIA A100-SXM4-80GB"] > 40 * 2**20


def test_what_is_predicted_is_for_the_settings_of_the_allocator() -> None:
    gpu = DeviceFacts(backend="cuda", name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30)
    plain, rounded = (predict(PICK.recipes[0], gpu, text) for text in (None, "roundup_power2_divisions:2"))
    assert plain is not None
    assert rounded is not None
    assert rounded.memory.allocator_settings == "roundup_power2_divisions:2"
    assert rounded.memory.components["rounding"] > plain.memory.components["rounding"]
    assert predict(PICK.recipes[0], gpu, "backend:cudaMallocAsync") is None
    on_cpu = DeviceFacts(backend="cpu", name="CPU", memory_bytes=2**34)
    assert predict(PICK.recipes[0], on_cpu, "backend:cudaMallocAsync") is not None


# The folder and what the suite is made of.


def test_records_of_another_suite_or_device_are_left_alone(tmp_path: Path) -> None:
    write_record(tmp_path / "suite", sample_record(suite="other"))
    with pytest.raises(UserError, match="has records of the suite 'other', not 'smoke'"):
        run(tmp_path / "suite")
    write_record(tmp_path / "device", sample_record(suite="smoke", backend="cuda", device_name="Another"))
    with pytest.raises(UserError, match=r"has records of Another \(cuda\), but this is Example CPU"):
        run(tmp_path / "device", resume=True)
    assert len(read_records(tmp_path / "suite")) == len(read_records(tmp_path / "device")) == 1


@pytest.mark.parametrize("rehearsing", [False, True])
def test_rehearsals_and_measurements_keep_to_their_own_folders(
    tmp_path: Path, pretending: pytest.MonkeyPatch, rehearsing: bool
) -> None:
    measured = sample_record(suite="smoke", device=GPU)
    path = write_record(tmp_path, measured if rehearsing else as_rehearsed(measured))
    before = path.read_bytes()
    pretend_here(pretending.setattr, Surroundings(device=GPU, environment=FACTS.environment, null_gpu=rehearsing))
    complaint = (
        "has records of measurements, but this run rehearses"
        if rehearsing
        else ("has records of rehearsals, but this run measures")
    )
    with pytest.raises(UserError, match=f"{complaint}: name another folder with -o"):
        run(tmp_path, resume=True)
    assert path.read_bytes() == before


def test_a_memory_snapshot_goes_beside_the_record_of_a_gpu(tmp_path: Path, pretending: pytest.MonkeyPatch) -> None:
    asked = msgspec.structs.replace(SETTINGS, memory_snapshot=True)
    with pytest.raises(UserError, match=r"--memory-snapshot needs CUDA's allocator.* use --timeline"):
        run(tmp_path / "cpu", PICK, settings=asked)
    pretend_here(pretending.setattr, Surroundings(device=GPU, environment=FACTS.environment))
    finished, _ = run(tmp_path / "gpu", PICK, settings=asked)
    [bell] = (tmp_path / "bell").glob("*.worker")
    record = tmp_path / "gpu" / finished.records[0].file_name
    assert json.loads(bell.read_text())["snapshot_path"] == str(record).replace(
        ".record.json", ".memory-snapshot.json.gz"
    )
    _, seen = run(tmp_path / "gpu", PICK, settings=asked, resume=True)
    assert [one.resumed for one in seen] == [False]  # for the pretending worker wrote none
    Path(json.loads(bell.read_text())["snapshot_path"]).touch()
    _, seen = run(tmp_path / "gpu", PICK, settings=asked, resume=True)
    assert [one.resumed for one in seen] == [True]
    for bell in (tmp_path / "bell").glob("*.worker"):
        bell.unlink()
    run(tmp_path / "without", PICK)
    [bell] = (tmp_path / "bell").glob("*.worker")
    assert json.loads(bell.read_text())["snapshot_path"] is None


def test_a_broken_record_is_set_aside_and_its_recipe_runs_again(tmp_path: Path) -> None:
    finished, _ = run(tmp_path / "out")
    broken = tmp_path / "out" / finished.records[1].file_name
    half = broken.read_bytes()[:100]
    for number in ("", "2"):
        broken.write_bytes(half)
        listener = Listener()
        run_suite(load_suite("smoke"), tmp_path / "out", settings=SETTINGS, resume=True, watcher=listener)
        aside = f"{broken.name}.broken{number}"
        assert listener.notices == [f"{broken}: broken record, renamed to {aside}"]
        assert (tmp_path / "out" / aside).read_bytes() == half
        assert [one.resumed for one in listener.seen] == [True, True, False]
    assert len(read_records(tmp_path / "out")) == 3


def test_bad_text_and_weights_are_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}")
    with pytest.raises(UserError, match="line 1"):
        run(tmp_path / "out", settings=msgspec.structs.replace(SETTINGS, dataset=str(tmp_path / "bad.jsonl")))
    weights = msgspec.structs.replace(SETTINGS, weights=str(tmp_path))
    with pytest.raises(UserError, match=r"not a folder with \*\.safetensors"):
        run(tmp_path / "out", settings=weights)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(LLAMA))
    with pytest.raises(UserError, match="of another model than lorabench/demo-llama"):
        run(tmp_path / "out", settings=weights)
    assert not (tmp_path / "out").exists()
