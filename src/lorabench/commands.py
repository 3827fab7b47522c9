"""The commands as functions: what `lorabench trace`, `plan`, `rehearse`, `run`, `check` and `report` do.

Each imports what it needs when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from lorabench.estimator.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Unpack

    from lorabench.bench.check.findings import Comparison
    from lorabench.bench.check.thresholds import Thresholds
    from lorabench.bench.machine.environment import DeviceChoice
    from lorabench.bench.records.record import Engine, RunRecord
    from lorabench.bench.rehearsing.program import ProgramRehearsal
    from lorabench.bench.rehearsing.recipes import RecipesRehearsal
    from lorabench.bench.running.runner import Finished
    from lorabench.estimator.answers.plan import Plan
    from lorabench.estimator.devices.device import Device
    from lorabench.estimator.imported.asked import Asked
    from lorabench.estimator.memory.allocator_settings import AllocatorSettings
    from lorabench.estimator.models.spec import ModelSpec
    from lorabench.estimator.recipes.recipe import RecipeOptions
    from lorabench.estimator.speed.calibrations import Calibration
    from lorabench.estimator.trace.trace import Trace

__all__ = ["check", "plan", "rehearse", "report", "run", "trace"]


def trace(
    model: str | Path | ModelSpec | None = None,
    *,
    from_file: str | Path | None = None,
    backend: Literal["cuda", "cpu"] = "cuda",
    gpu: str | float | Device | None = None,
    alloc_conf: str | AllocatorSettings | None = None,
    on_progress: Callable[[str], None] = lambda what: None,
    **options: Unpack[RecipeOptions],
) -> Trace:
    """Return the memory of the real training step of ``model``, run on meta tensors without a GPU. It takes seconds.

    Args:
        model: as in `lorabench.estimate`; so are ``from_file`` and ``options``.
        backend: whose allocations are traced.
        gpu: the GPU whose kernels' scratch memory is counted, by name.
        alloc_conf: settings of torch's allocator, as in PYTORCH_ALLOC_CONF. Default: those of the environment.
        on_progress: called with each stage.

    Raises:
        UserError: as in `lorabench.estimate`; a package of the ``bench`` extra is missing; or ``gpu`` is only a size.
    """
    from lorabench.cli.tracing import import_training_libraries
    from lorabench.estimator.devices.device import as_device
    from lorabench.estimator.imported.asked import asked
    from lorabench.estimator.memory.allocator_settings import DEFAULTS, read_settings, settings_of_environment

    if backend == "cpu":
        if alloc_conf is not None:
            raise UserError("--alloc-conf sets CUDA's allocator: leave it out with --backend cpu")
        if gpu is not None:
            raise UserError("--gpu does not apply to --backend cpu: leave one of them out")
    device = None if gpu is None else as_device(gpu)
    if device is not None and device.compute_capability is None:
        raise UserError(
            f"--gpu {device.name}: a trace needs the GPU's name, which decides its cuBLAS workspaces: name one of "
            f"lorabench gpus, or let lorabench estimate --gpu {device.name} say whether it fits"
        )
    allocator = DEFAULTS
    if backend == "cuda":
        given_conf = read_settings(alloc_conf) if isinstance(alloc_conf, str) else alloc_conf
        allocator = given_conf or settings_of_environment()
    allocator = allocator.on(None if device is None else device.usable_bytes)
    wanted = asked(model, from_file, options)
    resolved = wanted.resolved()
    on_progress("importing torch, transformers and peft")
    import_training_libraries("trace")
    from lorabench.estimator.trace.trace import trace as trace_recipe

    traced = trace_recipe(
        resolved,
        backend=backend,
        compute_capability=None if device is None else device.compute_capability,
        multiprocessors=None if device is None else device.multiprocessors,
        allocator=allocator,
        on_progress=on_progress,
    )
    return replace(
        traced,
        imported=wanted.imported,
        assumptions=(*traced.assumptions, *(() if device is None else device.assumptions)),
        warnings=(*traced.warnings, *allocator.warnings()),
    )


def plan(
    model: str | Path | ModelSpec | None = None,
    *,
    gpu: str | float | Device,
    from_file: str | Path | None = None,
    min_batch_tokens: int = 1,
    **options: Unpack[RecipeOptions],
) -> Plan:
    """Return the recipes of ``model`` that fit ``gpu``, the fastest first, and the limits of each method.

    Args:
        model: as in `lorabench.estimate`.
        gpu: the GPU: its name, its memory size, or a device. Its speed is found as in `lorabench.estimate`.
        from_file: as in `lorabench.estimate`. The config's model, method, adapters, quantisation and length are fixed.
        min_batch_tokens: the least tokens of a step, reached by accumulation.
        options: recipe options that are fixed. The others are searched.

    Raises:
        UserError: as in `lorabench.estimate`; or the model has no closed form.
    """
    from lorabench.estimator.devices.device import as_device
    from lorabench.estimator.imported.asked import asked
    from lorabench.estimator.speed.calibrations import find_calibration

    device = as_device(gpu)
    given = [name for name, value in options.items() if value is not None]
    return plan_of(asked(model, from_file, options), given, device, find_calibration(device.name), min_batch_tokens)


def plan_of(
    wanted: Asked,
    given: Sequence[str],
    device: Device,
    calibration: Calibration | None,
    min_batch_tokens: int,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Plan:
    """Return the plan for what is ``wanted``. ``given``: options that were not read from a config.

    Raises:
        UserError: as in `plan`.
    """
    from lorabench.cli.plan import LEFT_TO_SEARCH
    from lorabench.estimator.answers.plan import make_plan
    from lorabench.estimator.memory.allocator_settings import settings_of_environment

    refuse_without_closed_form(wanted.spec)
    fixed = {name: value for name, value in wanted.options.items() if name in given or name not in LEFT_TO_SEARCH}
    if wanted.spec.stored is not None:
        fixed = {**wanted.spec.stored.options, **fixed}
    found = make_plan(
        wanted.spec,
        device,
        fixed,
        min_batch_tokens,
        calibration,
        allocator=settings_of_environment(),
        on_progress=on_progress,
    )
    return replace(found, imported=wanted.imported)


def refuse_without_closed_form(spec: ModelSpec) -> None:
    """Refuse a model for which a plan would take one trace after the other.

    Raises:
        UserError: the model has no closed form.
    """
    from lorabench.estimator.models.read_config import has_closed_form

    if not has_closed_form(spec):
        raise UserError(
            f"plan needs a closed form, and model_type {spec.model_type} has none: "
            "use `lorabench estimate` for one recipe"
        )


def rehearse(
    target: str | Path | Sequence[str],
    *,
    gpu: str | Device,
    from_file: str | Path | None = None,
    output: str | Path | None = None,
    **settings: Any,
) -> RecipesRehearsal | ProgramRehearsal:
    """Run a recipe, a suite or a training program on a simulated GPU, and return its memory.

    Args:
        target: a model or a suite, as for `run`; or a program with its arguments, as a list:
            ``["python", "train.py"]``.
        gpu: the GPU to simulate, by name.
        from_file: as in `lorabench.estimate`, for a recipe.
        output: folder for records or reports. Default: none are kept.
        settings: for a recipe its options (``method="qlora"``) and the arguments of `rehearse_suite`; for a program
            those of `rehearse_program` (``steps``, ``gpus``, ``rank``, ``random_weights`` …).

    Raises:
        UserError: as in `lorabench.estimate`; or this machine cannot rehearse, such as without a CUDA build of torch.
    """
    from pathlib import Path

    from lorabench.cli.rehearse import report_folder
    from lorabench.estimator.devices.device import as_device

    device, folder = as_device(gpu), None if output is None else Path(output)
    if not isinstance(target, (str, Path)):
        from lorabench.bench.rehearsing.program import rehearse_program

        with report_folder(folder) as reports:
            return rehearse_program(target, device, reports, **settings)
    from tempfile import TemporaryDirectory

    from lorabench.bench.rehearsing.recipes import rehearse_suite
    from lorabench.cli.run import suite_of
    from lorabench.estimator.recipes.recipe import SETTINGS

    options = {name: settings.pop(name) for name in [*settings] if name in SETTINGS}
    suite = suite_of(str(target), options, None if from_file is None else Path(from_file))
    with TemporaryDirectory(prefix="lorabench-") as scratch:
        return rehearse_suite(suite, device, Path(scratch), folder, **settings)


def run(
    target: str | Path | None = None,
    *,
    output: str | Path,
    from_file: str | Path | None = None,
    steps: int | None = None,
    warmup_steps: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
    device: DeviceChoice = "auto",
    engine: Engine = "lorabench",
    weights: str | None = None,
    dataset: str | Path | None = None,
    resume: bool = False,
    **options: Unpack[RecipeOptions],
) -> Finished:
    """Train each recipe of a suite, or one model, and write a run record for each into ``output``.

    Training processes import the main module again: keep the call below ``if __name__ == "__main__":``.

    Args:
        target: a suite (a YAML file or a shipped one, such as ``"demo"``), or a model as in `lorabench.estimate`.
        output: folder for the records; ``resume`` keeps those that it has.
        from_file: as in `lorabench.estimate`, for one recipe.
        steps: minimum number of timed steps. Default: the suite's, or 20; of ``warmup_steps`` 3, of ``repeats`` 1.
        seed: of random weights and dropout.
        device: auto, cpu or cuda.
        engine: lorabench's training loop, or transformers' Trainer.
        weights: None for random ones, ``"hub"``, or a folder with safetensors.
        dataset: a text or .jsonl file. Default: Python's own text.
        options: recipe options, if ``target`` is a model.

    Raises:
        UserError: as in `lorabench.estimate`, and as `run_suite` does.
    """
    from pathlib import Path

    from lorabench.bench.records.run_settings import Settings
    from lorabench.bench.running.runner import run_suite
    from lorabench.bench.suites.suite import with_amounts
    from lorabench.cli.run import suite_of

    suite = suite_of(
        None if target is None else str(target), dict(options), None if from_file is None else Path(from_file)
    )
    amounts = {"steps": steps, "warmup_steps": warmup_steps, "repeats": repeats}
    suite = with_amounts(suite, {name: count for name, count in amounts.items() if count is not None})
    settings = Settings(
        backend="cpu",  # until the device is found
        steps=suite.steps,
        warmup_steps=suite.warmup_steps,
        seed=seed,
        weights=weights,
        dataset=None if dataset is None else str(dataset),
        engine=engine,
    )
    return run_suite(suite, Path(output), settings=settings, device=device, resume=resume)


def check(
    results: str | Path,
    *,
    baseline: str | Path | None = None,
    suite: str | None = None,
    allow: Sequence[str] = (),
    across_devices: bool = False,
    **tolerances: float | str | None,
) -> Comparison:
    """Return the records in ``results`` compared with those of ``baseline``, or without one with the estimate.

    Args:
        results: a folder that `run` wrote.
        baseline: another one.
        suite: a suite whose thresholds apply.
        allow: known cases that pass, each ``NAME=REASON``.
        across_devices: whether to compare results of different devices.
        tolerances: name of a threshold → share such as 0.03, ``"3%"`` or None for off. They are memory, reserved, nvml,
            speed, loss, loss_over_seeds and estimate.

    Raises:
        UserError: a folder has no records, or a broken one; a tolerance or a name in ``allow`` is unknown.
    """
    from pathlib import Path

    from lorabench.bench.check.thresholds import Thresholds, read_share, with_shares
    from lorabench.bench.records.record import read_records
    from lorabench.bench.suites.suite_file import load_suite

    unknown = tolerances.keys() - set(Thresholds.__struct_fields__)
    if unknown:
        names = ", ".join(Thresholds.__struct_fields__)
        raise UserError(f"no tolerance {min(unknown)}: choose from {names}")
    thresholds = Thresholds() if suite is None else load_suite(suite).thresholds
    shares = {name: None if share is None else read_share(share) for name, share in tolerances.items()}
    thresholds = with_shares(thresholds, shares)
    before = None if baseline is None else read_records(Path(baseline))
    return compared(read_records(Path(results)), before, thresholds, allow, across_devices=across_devices)


def compared(
    records: Sequence[RunRecord],
    before: Sequence[RunRecord] | None,
    thresholds: Thresholds,
    allow: Sequence[str],
    *,
    across_devices: bool = False,
) -> Comparison:
    """Return ``records`` compared with those from ``before``, or if that is None with the estimate.

    Raises:
        UserError: as in `check`.
    """
    from lorabench.bench.check.baseline import compare
    from lorabench.bench.check.estimate import compare_with_estimate
    from lorabench.bench.check.waivers import read_waiver, waive

    if before is None:
        comparison = compare_with_estimate(records, thresholds)
    else:
        comparison = compare(records, before, thresholds, across_devices=across_devices)
    return waive(comparison, [read_waiver(text, comparison) for text in allow])


def report(
    *folders: str | Path,
    models: Sequence[str] = (),
    gpus: Sequence[str] = (),
    output: str | Path = "report.html",
) -> Path:
    """Write an HTML page of the records in ``folders``, and of estimates of ``models``; return its path.

    Args:
        folders: folders that `run` wrote.
        models: models whose estimates the page has besides.
        gpus: GPUs that are selected first.
        output: the page's file.

    Raises:
        UserError: there is nothing to report, a folder has no records, a model has no closed form, or a name is
            unknown; jinja2 is missing; or the page cannot be written.
    """
    from pathlib import Path

    from lorabench.cli.report import with_closed_form
    from lorabench.estimator.devices.device import find_device
    from lorabench.reports.page import render_report, write_page
    from lorabench.reports.runs import read_runs

    if not folders and not models:
        raise UserError("nothing to report: name folders of results, or models")
    runs = read_runs([Path(folder) for folder in folders]) if folders else []
    page = render_report(runs, with_closed_form(models), [find_device(name) for name in gpus])
    write_page(page, Path(output))
    return Path(output)
