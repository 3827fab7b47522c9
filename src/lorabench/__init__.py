"""Predict, measure and check what fine-tuning a language model costs.

>>> import lorabench
>>> lorabench.estimate("meta-llama/Llama-3.1-8B", method="qlora", rank=16, gpu="rtx-4090").fits
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from lorabench.commands import check, plan, rehearse, report, run, trace
from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Unpack

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from lorabench.bench.records.flat import Records
    from lorabench.estimator.answers.comparison import Comparison
    from lorabench.estimator.answers.estimates import Estimate
    from lorabench.estimator.devices.device import Device
    from lorabench.estimator.models.spec import ModelSpec
    from lorabench.estimator.recipes.recipe import Recipe, RecipeOptions
    from lorabench.estimator.speed.grid import ThroughputGrid


__all__ = [
    "UserError",
    "check",
    "compare",
    "estimate",
    "estimate_grid",
    "estimate_throughput_grid",
    "find_device",
    "find_model",
    "make_recipe",
    "plan",
    "read_records",
    "rehearse",
    "report",
    "run",
    "trace",
]


def estimate(
    model: str | Path | ModelSpec | None = None,
    *,
    from_file: str | Path | None = None,
    gpu: str | float | Device | None = None,
    replay: bool = True,
    alloc_conf: str | None = None,
    tokens: int | None = None,
    price_per_hour: float | None = None,
    **options: Unpack[RecipeOptions],
) -> Estimate:
    """Return memory, verdict and speed of fine-tuning ``model``, without torch.

    Args:
        model: a catalogue name, a config.json or its folder, or a hub id; or a spec from `find_model`. It may be left
            out if ``from_file`` names it.
        from_file: a config of axolotl, LLaMA-Factory, TRL, transformers, peft, accelerate, DeepSpeed, torchtune or
            Unsloth. ``options`` override it. The answer's ``imported`` says which keys it does not take into account.
        gpu: the GPU to fit: its name or memory size (``24GB``), or a device from `find_device`. Its speed comes from
            `lorabench calibrate` if that was run for it, else from the datasheet.
        replay: replay CUDA's allocator, for allocated and reserved bytes as torch counts them and the allocator's
            verdict. It takes some tenths of a second. Without it the answer takes milliseconds, allocated bytes are
            those of the tensors, and reserved bytes have a range.
        alloc_conf: settings of torch's allocator, as in PYTORCH_ALLOC_CONF. Default: those of the environment.
        tokens: tokens of a training, whose time the answer's ``throughput.training`` has, if the GPU's speed is known.
        price_per_hour: the GPU's price, for the cost of that training.
        options: the recipe's settings, as on the command line: ``method="qlora", rank=16, seq_len=4096``. If the model
            does not support a default, the usual alternative is used and listed in the answer's ``assumptions``.

    Raises:
        UserError: the model, GPU or an option is unknown, or options contradict each other.
    """
    from lorabench.estimator.answers.estimates import estimate_recipe, with_training
    from lorabench.estimator.devices.device import as_device
    from lorabench.estimator.imported.asked import asked
    from lorabench.estimator.memory.allocator_settings import read_settings, settings_of_environment
    from lorabench.estimator.speed.calibrations import find_calibration

    wanted = asked(model, from_file, options)
    allocator = settings_of_environment() if alloc_conf is None else read_settings(alloc_conf)
    device = None if gpu is None else as_device(gpu)
    calibration = None if device is None else find_calibration(device.name)
    answer = estimate_recipe(wanted.resolved(), device, calibration, replay=replay, allocator=allocator)
    return with_training(replace(answer, imported=wanted.imported), tokens, price_per_hour)


def compare(
    model: str | Path | ModelSpec | None = None,
    *,
    from_file: str | Path | None = None,
    gpu: str | float | Device | list[str | float | Device] | tuple[str | float | Device, ...] | None = None,
    replay: bool = True,
    alloc_conf: str | None = None,
    tokens: int | None = None,
    price_per_hour: float | None = None,
    **options: Any,
) -> Comparison:
    """Return the estimates of several recipes on several GPUs, as `lorabench estimate` does for lists.

    The arguments are those of `estimate`; ``gpu`` and each option may be a list. Each combination is an estimate.
    Without ``method`` these are full, lora and qlora, each with the options that apply to it. More than six are
    estimated without ``replay``.

    Raises:
        UserError: as in `estimate`; or there are more than 1,000 combinations.
    """
    from lorabench.estimator.answers.comparison import combinations
    from lorabench.estimator.answers.comparison import compare as compare_estimates
    from lorabench.estimator.devices.device import as_device
    from lorabench.estimator.memory.allocator_settings import read_settings, settings_of_environment
    from lorabench.estimator.speed.calibrations import find_calibration

    if gpu is None:
        devices = []
    elif isinstance(gpu, (list, tuple)):
        devices = [as_device(each) for each in gpu]
    else:
        devices = [as_device(gpu)]
    return compare_estimates(
        combinations(model, from_file, options),
        [(device, find_calibration(device.name)) for device in devices],
        replay=replay,
        allocator=settings_of_environment() if alloc_conf is None else read_settings(alloc_conf),
        tokens=tokens,
        price_per_hour=price_per_hour,
    )


def estimate_grid(
    model: str | Path | ModelSpec,
    batch_sizes: ArrayLike,
    seq_lens: ArrayLike,
    ranks: ArrayLike | None = None,
    *,
    gpu: str | float | Device | None = None,
    **options: Unpack[RecipeOptions],
) -> NDArray[np.int64]:
    """Return the peak bytes of tensors for every batch size, length and rank: a million in about a second. Needs numpy.

    They are the peak allocated bytes of `estimate` without ``replay``. A recipe with peak P, whose weights and adapters
    take W, runs with P + 67 % · (P − W) + 64 MiB of reserved memory (`estimator/memory/reserved.py`).

    Args:
        model: as in `estimate`.
        batch_sizes: sequences per micro-batch; integers.
        seq_lens: tokens per sequence; integers.
        ranks: ranks of the adapters; integers. Default: the recipe's rank.
        gpu: a GPU, for the size of its cuBLAS workspaces.
        options: the other settings of the recipe.

    Returns:
        Bytes, in the common shape of ``batch_sizes``, ``seq_lens`` and ``ranks`` after broadcasting.

    Raises:
        UserError: as in `estimate`; the arrays do not broadcast, or a number is impossible for a recipe.
    """
    import numpy as np

    from lorabench.estimator.closed_form.memory_grid import estimate_memory_grid
    from lorabench.estimator.devices.device import as_device
    from lorabench.estimator.recipes.defaults import recipe_for
    from lorabench.estimator.recipes.feasibility import refuse_impossible

    device = None if gpu is None else as_device(gpu)
    compute_capability = None if device is None else device.compute_capability
    resolved = recipe_for(_spec(model), **options)
    peaks = estimate_memory_grid(resolved, batch_sizes, seq_lens, ranks, compute_capability=compute_capability)
    if peaks.size:
        refuse_impossible(resolved.replaced(seq_len=int(np.max(seq_lens))))
    return peaks


def estimate_throughput_grid(
    model: str | Path | ModelSpec,
    batch_sizes: ArrayLike,
    seq_lens: ArrayLike,
    ranks: ArrayLike | None = None,
    *,
    gpu: str | float | Device,
    **options: Unpack[RecipeOptions],
) -> ThroughputGrid:
    """Return seconds per step and tokens per second, with ranges, for every batch size, length and rank.

    The arguments are those of `estimate_grid`; the speed of ``gpu`` is found as in `estimate`. The answer does not say
    whether a recipe fits.

    Raises:
        UserError: as in `estimate_grid`; or only the memory of ``gpu`` is known, or it cannot run the recipe.
    """
    import numpy as np

    from lorabench.estimator.answers.support import refuse_lacking
    from lorabench.estimator.devices.device import as_device
    from lorabench.estimator.recipes.defaults import recipe_for
    from lorabench.estimator.recipes.feasibility import refuse_impossible
    from lorabench.estimator.speed import grid
    from lorabench.estimator.speed.calibrations import find_calibration

    device = as_device(gpu)
    resolved = recipe_for(_spec(model), **options)
    refuse_lacking(resolved.recipe, device)
    calibration = find_calibration(device.name)
    found = grid.estimate_throughput_grid(resolved, device, batch_sizes, seq_lens, ranks, calibration)
    if found is None:
        raise UserError(
            f"Only the memory of {quoted(device.name)} is known, not its speed: pass a GPU name (lorabench gpus)"
        )
    if found.step_seconds.size:
        refuse_impossible(resolved.replaced(seq_len=int(np.max(seq_lens))))
    return found


def make_recipe(
    model: str | Path | ModelSpec | None = None,
    *,
    from_file: str | Path | None = None,
    **options: Unpack[RecipeOptions],
) -> Recipe:
    """Return a recipe of ``model`` with ``options``, and for the rest the defaults that `estimate` uses for it.

    Raises:
        UserError: the model or an option is unknown, a value is out of range, or options contradict each other.
    """
    from lorabench.estimator.imported.asked import asked

    return asked(model, from_file, options).resolved().recipe


def _spec(model: str | Path | ModelSpec) -> ModelSpec:
    from lorabench.estimator.models.spec import ModelSpec

    return model if isinstance(model, ModelSpec) else find_model(model)


def find_model(model: str | Path) -> ModelSpec:
    """Return the shapes of a model, given by catalogue name, config.json or its folder, or hub id.

    A `Path` is always a file or folder.

    Raises:
        UserError: there is no such model, or the config is not a causal language model of a supported family.
    """
    from lorabench.estimator.models import catalogue

    return catalogue.find_model(model)


def find_device(gpu: str | float) -> Device:
    """Return a GPU by name. For a size such as ``24GB`` or 24, return a GPU with a known memory only.

    If several GPUs match, the most likely one is returned, and its ``assumptions`` say so.

    Raises:
        UserError: no GPU matches, or several are equally likely.
    """
    from lorabench.estimator.devices import device

    return device.find_device(gpu)


def read_records(folder: str | Path) -> Records:
    """Return the run records that `lorabench run` wrote into ``folder``: a list with a method ``to_frame``.

    Raises:
        UserError: the folder is missing or has no records, or a record is broken or has another schema.
    """
    from pathlib import Path

    from lorabench.bench.records import record
    from lorabench.bench.records.flat import Records

    return Records(record.read_records(Path(folder)))
