"""Whether the estimate's verdict is right in the hardest cases: recipes that need within 5 % of what a GPU has.

Run with `python -m benchmarks.boundary DIR` in an environment with a CUDA build of torch, such as
`make .venv-cuda/.installed` makes, with liger-kernel added. Models, methods and options are drawn by a fixed seed. The
batch size or the length is sought at which the replayed allocator just runs on a share of the GPU's memory that is
drawn too, or just does not. Each recipe is then rehearsed on that GPU, into a folder of DIR; records that are there are
kept. The table goes into docs/accuracy.md, between its marks, and copies of the records into
`tests/estimator/boundary/`. A rehearsal takes some 10 to 60 s.

The memory is all that a process can use, without a CUDA context, which a null GPU does not have.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.rehearsal_errors import PAGE, keep_records, replace_between

from lorabench.bench.records.labels import distinct_labels
from lorabench.bench.records.record import RunRecord, read_records
from lorabench.bench.rehearsing.recipes import rehearse_suite
from lorabench.bench.suites.suite import Suite
from lorabench.estimator.answers.support import unsupported
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training
from lorabench.estimator.devices.device import Device, find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model, model_names
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.resolved import ResolvedRecipe

SAMPLE = Path(__file__).parent.parent / "tests" / "estimator" / "boundary"
BEGIN, END = "<!-- begin: benchmarks/boundary.py -->", "<!-- end: benchmarks/boundary.py -->"
GPUS = ["t4", "rtx-3060", "rtx-4090", "rtx-5090", "a100-sxm-40gb", "a100-sxm-80gb", "h100-sxm", "h200"]
RECIPES_PER_GPU = 9
METHODS = ["full", "lora", "qlora"]
NEAR = 0.05
"""Recipes need this share more or less of the GPU's memory, at most."""
LARGEST_MODEL = 9_500_000_000
LARGEST_BATCH = 512
LONGEST = 8192
LENGTH_STEP = 32
MOST_TRIES = 500


def draw_recipes(device: Device, draw: Random) -> list[ResolvedRecipe]:
    """Return recipes at the boundary of ``device``: methods take turns, and every second recipe should fit."""
    found: list[ResolvedRecipe] = []
    for _ in range(MOST_TRIES):
        near = draw_near(device, draw, METHODS[len(found) % len(METHODS)], fits=len(found) % 2 == 0)
        if near is not None and all(near.recipe.model != other.recipe.model for other in found):
            found.append(near)
            if len(found) == RECIPES_PER_GPU:
                return found
    raise AssertionError(f"{MOST_TRIES} tries found too few recipes for {device.name}")


def draw_near(device: Device, draw: Random, method: str, *, fits: bool) -> ResolvedRecipe | None:
    """Return a drawn recipe that needs a little less or more than ``device`` has; None if the draw finds none."""
    spec = draw_model(draw)
    half = None if device.supports_bfloat16 else "float16"
    options = {
        "method": method,
        "dtype": draw.choice([None, "bfloat16"]) if half is None else "float32" if method == "full" else half,
        "mixed_precision": None if half is None else "fp16",
        "gradient_checkpointing": draw.choice([True, False]),
        "optim": draw.choice(
            ["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adafactor", "sgd"]
        ),
        "attn_implementation": draw.choice(["sdpa", "sdpa", "eager"]),
        "loss": draw.choice([None, None, None, "legacy", "liger"]),
        "gradient_accumulation": draw.choice([1, 1, 1, 2]),
        "rank": None if method == "full" else draw.choice([8, 16, 64, 256]),
    }
    share = draw.uniform(1 - NEAR, 1) if fits else draw.uniform(1, 1 + NEAR)
    longest = min(spec.max_position_embeddings, LONGEST)
    if draw.random() < 0.5:
        open_setting, step, most = "batch_size", 1, LARGEST_BATCH
        options["seq_len"] = draw.choice([length for length in (256, 512, 1024, 2048, 4096) if length <= longest])
    else:
        open_setting, step, most = "seq_len", LENGTH_STEP, longest // LENGTH_STEP
        options["batch_size"] = draw.choice([1, 2, 4, 8, 16])

    def with_steps(steps: int) -> ResolvedRecipe:
        return recipe_for(spec, **options, **{open_setting: steps * step})

    try:
        refuse_impossible(with_steps(1))
    except UserError:
        return None
    if unsupported(with_steps(1).recipe, device):
        return None
    room = round(share * device.usable_bytes)
    steps = largest(lambda steps: runs(with_steps(steps), device, room), most) + (not fits)
    if not 1 <= steps <= most:
        return None
    resolved = with_steps(steps)
    # Batches and lengths are whole: the next smaller or larger one may need much less or more.
    near = (
        not runs(resolved, device, round((1 - NEAR) * device.usable_bytes))
        if fits
        else runs(resolved, device, round((1 + NEAR) * device.usable_bytes))
    )
    return resolved if near else None


def draw_model(draw: Random) -> ModelSpec:
    """Return a base model of the catalogue: each family is drawn as often as another."""
    families: dict[str, list[ModelSpec]] = {}
    for spec in map(find_model, model_names()):
        if spec.parameters <= LARGEST_MODEL and not spec.name.startswith("lorabench/"):
            families.setdefault(spec.model_type, []).append(spec)
    return draw.choice(families[draw.choice(sorted(families))])


def runs(resolved: ResolvedRecipe, device: Device, room: int) -> bool:
    """Return whether the replayed allocator serves the recipe's steps on ``device`` from ``room`` bytes."""
    if estimate_memory(resolved, compute_capability=device.compute_capability).peak_allocated_bytes > room:
        return False
    training = Training(resolved, device.compute_capability, device.multiprocessors)
    return training.replay(capacity=room).out_of_memory is None


def largest(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 1 to ``most`` for which ``holds`` is true; 0 if there is none."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class Row(NamedTuple):
    """One recipe on one GPU."""

    gpu: str
    recipe: str
    fits: bool
    """The verdict of the replay."""
    ran: bool
    """What the rehearsal saw."""


def compare(folder: Path) -> Iterator[Row]:
    """Yield a row for each record below ``folder``.

    Raises:
        AssertionError: a recipe failed by something else than its memory.
    """
    for gpu in GPUS:
        device = find_device(gpu)
        records = read_records(folder / gpu) if (folder / gpu).is_dir() else []
        labels = distinct_labels({record.digest: record.recipe for record in records})
        for record in records:
            assert record.outcome in ("ok", "oom"), f"{gpu}: {labels[record.digest]}: {record.message}"
            fits = runs(resolved_of(record), device, device.usable_bytes)
            yield Row(gpu, labels[record.digest], fits, record.outcome == "ok")


def resolved_of(record: RunRecord) -> ResolvedRecipe:
    """Return the recipe of ``record`` with its model."""
    return ResolvedRecipe(read_config(record.model_config, record.recipe.model), record.recipe)


def table(rows: Sequence[Row]) -> str:
    """Return how many verdicts are right on each GPU, as Markdown, then each wrong one."""
    lines = [
        "| GPU | recipes | ran | right | said to fit, ran out | said not to fit, ran |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for gpu in [*GPUS, "all"]:
        of_gpu = [row for row in rows if gpu in (row.gpu, "all")]
        counts = (
            len(of_gpu),
            sum(row.ran for row in of_gpu),
            sum(row.fits == row.ran for row in of_gpu),
            sum(row.fits and not row.ran for row in of_gpu),
            sum(row.ran and not row.fits for row in of_gpu),
        )
        lines.append(f"| {gpu} | {' | '.join(map(str, counts))} |")
    wrong = [row for row in rows if row.fits != row.ran]
    if wrong:
        lines += ["", "Wrong verdicts:", ""]
        lines += [f"- {row.gpu}: {row.recipe}: {'ran' if row.ran else 'ran out of memory'}" for row in wrong]
    return "\n".join(lines)


def main() -> None:
    """Draw, rehearse and compare, and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="folder of the records")
    options.add_argument("--compare", action="store_true", help="rehearse nothing; take the records that are there")
    options.add_argument("--seed", default="", help="draw other recipes; print the table, and keep nothing")
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    for gpu in () if asked.compare else GPUS:
        device = find_device(gpu)
        recipes = draw_recipes(device, Random(gpu + asked.seed))  # noqa: S311
        for resolved in recipes:
            print(f"{gpu}: {resolved.recipe.label()}", flush=True)
        with tempfile.TemporaryDirectory() as notes:
            rehearse_suite(
                Suite(name=f"boundary-{gpu}", recipes=tuple(recipes)), device, Path(notes), asked.folder / gpu
            )
    rows = list(compare(asked.folder))
    if not asked.seed:
        for gpu in GPUS:
            if (asked.folder / gpu).is_dir():
                keep_records(read_records(asked.folder / gpu), SAMPLE / gpu)
        replace_between(PAGE, BEGIN, END, table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
