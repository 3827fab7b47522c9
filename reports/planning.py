"""The estimator on a page: its compiled forms and arithmetic as data, which the page's scripts evaluate.

Memory is exact for whatever people choose: the forms' coefficients and the arithmetic around them are the estimator's
own (`expressions`). Speed is worked out at a grid of sizes, between which the scripts interpolate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import msgspec
from msgspec.structs import replace

from lorabench.estimator.answers.estimates import refuse_impossible
from lorabench.estimator.answers.verdict import hold_against
from lorabench.estimator.closed_form.forms import Setup, branches, compile_form, held_throughout
from lorabench.estimator.closed_form.sizes import CHUNK, WIDTH, monomial_values
from lorabench.estimator.devices.device import Device, device_names, find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import COMPONENTS, Breakdown
from lorabench.estimator.memory.reserved import reserve
from lorabench.estimator.memory.workspaces import workspaces
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.parameters import count_parameters
from lorabench.estimator.recipes.recipe import CHOICES, Recipe, make_recipe
from lorabench.estimator.speed.throughput import estimate_throughput
from lorabench.reports.expressions import Program, Symbol

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""That people can choose."""
LARGEST_BATCH_SIZE = 256
SHORTEST, LONGEST = 128, 131072
"""Lengths that people can choose, where the model has no fewer positions."""
ALTERNATIVES: tuple[dict[str, Any], ...] = ({}, {"attn_implementation": "eager"}, {"lora_dropout": 0.0})
"""Settings beside the defaults, for models that cannot take these."""
SPEED_BATCH_SIZES = (1, 4, 32, LARGEST_BATCH_SIZE)
SPEED_LENGTHS = (128, 512, 2048, 8192, 32768, LONGEST)
SPEED_RANKS = (1, 16, 512)
"""For which speeds are worked out."""
MOST_KEPT = 16
"""Models kept for further pages: each takes a second."""
SIGNIFICANT_DIGITS = 6
"""Of a speed."""


def longest_length(spec: ModelSpec) -> int:
    """Return the longest sequence that people can choose."""
    return min(spec.max_position_embeddings or LONGEST, LONGEST)


def page_recipe(
    spec: ModelSpec, method: str, checkpointing: bool, rank: int | None = None, batch_size: int = 1, seq_len: int = 1
) -> Recipe:
    """Return the recipe that the page means by what people choose: all else is the default, if the model can have it.

    Raises:
        UserError: the model can have none.
    """
    for settings in ALTERNATIVES:
        try:
            recipe = make_recipe(
                spec.name,
                method=method,
                gradient_checkpointing=checkpointing,
                rank=rank,
                batch_size=batch_size,
                seq_len=seq_len,
                **(settings if method != "full" else {key: settings[key] for key in settings if "lora" not in key}),
            )
            refuse_impossible(spec, recipe)
            return recipe
        except UserError as error:
            refusal = error
    raise refusal


def planning(models: Sequence[ModelSpec], devices: Sequence[Device]) -> dict[str, Any]:
    """Return the estimates of ``models`` as data: for every GPU of the catalogue, with speeds for ``devices``."""
    gpus = {device.name: device for device in (*devices, *map(find_device, device_names()))}
    architectures = list(dict.fromkeys(device.architecture for device in gpus.values()))
    return {
        "components": list(COMPONENTS),
        "ranks": RANKS,
        "gpus": [
            {
                "name": device.name,
                "title": device.title,
                "memoryBytes": device.memory_bytes,
                "architecture": architectures.index(device.architecture),
            }
            for device in gpus.values()
        ],
        "architectures": [
            {"workspaces": workspaces(architecture).bytes, "reserved": _reserved(architecture)}
            for architecture in architectures
        ],
        "verdict": _verdict(),
        "models": [_model(msgspec.json.encode(spec), msgspec.json.encode(devices)) for spec in models],
    }


@lru_cache(MOST_KEPT)
def _model(encoded_spec: bytes, encoded_devices: bytes) -> dict[str, Any]:
    spec = msgspec.json.decode(encoded_spec, type=ModelSpec)
    devices = msgspec.json.decode(encoded_devices, type=list[Device])
    return {
        "name": spec.name,
        "shortest": min(SHORTEST, longest_length(spec)),
        "longest": longest_length(spec),
        "monomials": _monomials(spec),
        "recipes": {
            method: {answer: _recipe(spec, method, checkpointing, devices) for answer, checkpointing in CHECKPOINTING}
            for method in methods(spec)
        },
    }


CHECKPOINTING = (("yes", True), ("no", False))


def methods(spec: ModelSpec) -> list[str]:
    """Return the methods that ``spec`` can be trained with."""

    def possible(method: str) -> bool:
        try:
            for _, checkpointing in CHECKPOINTING:
                compile_form(Setup(spec, page_recipe(spec, method, checkpointing), "cuda"))
        except UserError:
            return False
        return True

    return [method for method in CHOICES["method"] if possible(method)]


def _recipe(spec: ModelSpec, method: str, checkpointing: bool, devices: Sequence[Device]) -> dict[str, Any]:
    recipe = page_recipe(spec, method, checkpointing)
    settings = recipe.describe()
    chosen = ("model", "method", "rank", "lora_alpha", "batch_size", "seq_len", "gradient_checkpointing")
    ranks = RANKS if recipe.rank else (None,)
    ranked = [page_recipe(spec, method, checkpointing, rank) for rank in ranks]
    return {
        "settings": {name: value for name, value in settings.items() if name not in chosen},
        "forms": [[_forms(spec, recipe, many, filled) for filled in (False, True)] for many in (False, True)],
        "held": [_held(spec, one) for one in ranked],
        "trainable": [count_parameters(spec, one).trainable for one in ranked],
        "speeds": [_speeds(spec, recipe, device) for device in devices],
    }


def _forms(spec: ModelSpec, recipe: Recipe, many: bool, filled: bool) -> list[dict[str, Any]] | None:
    """Return phase by phase the moments that may be the peak: bytes by component, by monomial."""
    window = spec.config.get("sliding_window")
    if filled and not window:
        return None
    alike = replace(recipe, batch_size=2 if many else 1, seq_len=window if filled else 1)
    forms = compile_form(Setup(spec, alike, "cuda"))
    assert not any(any(moment.live[CHUNK::WIDTH]) for form in forms for moment in form.moments), "_needed leaves it out"
    return [{"phase": form.phase, "moments": [moment.live for moment in form.moments]} for form in forms]


def _held(spec: ModelSpec, recipe: Recipe) -> dict[str, Any]:
    """Return phase → bytes by component of what is held throughout; 1 stands for workspaces, which are the GPU's."""
    held = held_throughout(Setup(spec, recipe, "cuda"), recipe.optim, recipe.rank, None)
    return {
        phase: [int(bytes_.get(name, 0) > 0) if name == "workspaces" else bytes_.get(name, 0) for name in COMPONENTS]
        for phase, bytes_ in held.items()
    }


def _monomials(spec: ModelSpec) -> dict[str, Any]:
    program = Program()
    batch_size, seq_len, rank = map(program.variable, ("batch_size", "seq_len", "rank"))
    values = monomial_values(spec, batch_size, seq_len, rank)
    answers = [_needed(program, value) for value in (*values, *branches(spec, batch_size, seq_len))]
    return {"steps": program.steps([place for place in answers if place is not None]), "answers": answers}


def _needed(program: Program, value: Any) -> int | None:
    """Return the place of a value; None for a fused loss' chunk of tokens, which no recipe of the page has."""
    if isinstance(value, Symbol) and not program.can_run(value.place):
        return None
    return program.place_of(value)


def _reserved(architecture: str | None) -> dict[str, Any]:
    program = Program()
    components: dict[str, Any] = {name: program.variable(name) for name in COMPONENTS}
    taken = reserve(components, architecture=architecture)
    answers = {
        name: program.place_of(value)
        for name, value in {
            "reservedLow": taken.reserved_range[0],
            "reservedHigh": taken.reserved_range[1],
            "total": taken.device_total,
            "totalLow": taken.device_total_range[0],
            "totalHigh": taken.device_total_range[1],
        }.items()
    }
    return {"steps": program.steps([*answers.values()]), "answers": answers}


def _verdict() -> dict[str, Any]:
    program = Program()
    total: Any = program.variable("total")
    memory = Breakdown(
        components={},
        phase="",
        peak_allocated_bytes=0,
        phase_peaks_bytes={},
        device_total_bytes=total,
        device_total_range_bytes=(program.variable("totalLow"), program.variable("totalHigh")),  # type: ignore[arg-type]
    )
    device_bytes: Any = program.variable("memoryBytes")
    margins: list[int] = []

    def judged() -> str:
        answer, margin = hold_against(memory, device_bytes)
        margins.append(program.place_of(margin))
        return answer

    answer = program.decisions(judged)
    return {"steps": program.steps([*margins, *_conditions(answer)]), "margin": margins[0], "answer": answer}


def _conditions(tree: Any) -> Iterator[int]:
    if isinstance(tree, dict):
        yield tree["if"]
        yield from _conditions(tree["then"])
        yield from _conditions(tree["else"])


def _speeds(spec: ModelSpec, recipe: Recipe, device: Device) -> dict[str, Any] | None:
    """Return tokens per second, least and most, at a grid of sizes; None for a GPU whose rates are not known."""
    longest = longest_length(spec)
    lengths = [length for length in SPEED_LENGTHS if length < longest] + [longest]
    ranks = SPEED_RANKS if recipe.rank else (1,)
    rates = []
    for batch_size, seq_len, rank in product(SPEED_BATCH_SIZES, lengths, ranks):
        sized = replace(recipe, batch_size=batch_size, seq_len=seq_len, rank=rank if recipe.rank else None)
        speed = estimate_throughput(spec, sized, device)
        if speed is None:
            return None
        rates.append([_rounded(rate) for rate in (speed.tokens_per_second, *speed.tokens_per_second_range)])
    return {"axes": [SPEED_BATCH_SIZES, lengths, ranks], "rates": rates}


def _rounded(number: float) -> float:
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}")


def gpu_choices(devices: Sequence[Device]) -> list[tuple[str, list[Device]]]:
    """Return the GPUs that people can choose: those whose speeds are shown, and all others."""
    named = {device.name for device in devices}
    others = [find_device(name) for name in device_names() if name not in named]
    return [("with their speeds", list(devices)), ("memory only", others)]
