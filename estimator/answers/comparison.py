"""Estimates of several recipes on several GPUs, side by side: the methods, or all combinations of listed values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from lorabench.estimator.answers.estimates import Estimate, estimate_recipe, with_training
from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.asked import Asked, asked, read_once
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.methods.catalogue import Method, methods_with
from lorabench.estimator.models.read_config import has_closed_form
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.recipe import SETTINGS, option_value, settings_of, with_all_settings
from lorabench.estimator.recipes.resolved import ResolvedRecipe

if TYPE_CHECKING:
    from pandas import DataFrame

    from lorabench.estimator.devices.device import Device
    from lorabench.estimator.models.spec import ModelSpec
    from lorabench.estimator.speed.calibrations import Calibration

COMPARED_METHODS: tuple[Method, ...] = ("full", "lora", "qlora")
"""The methods that are compared if none is named."""
ORDER = {name: place for place, name in enumerate(SETTINGS)}
"""Setting → its place in the order of display, in which combinations are listed."""
MOST_ESTIMATES = 1000
"""The largest number of estimates: they take about five seconds."""
MOST_REPLAYED = 6
"""The largest number of estimates for which the allocator is replayed: each of them takes up to a second."""


class Combination(NamedTuple):
    """One of the recipes that were asked for."""

    given: dict[str, Any]
    """The options that were given and apply to its method."""
    asked: Asked


class LeftOut(Struct, frozen=True, kw_only=True):
    """Recipes that cannot train."""

    method: str | None
    """None if none was named."""
    why: str
    """It names the GPU if that is the reason."""


class Comparison(Struct, frozen=True, kw_only=True):
    """Estimates side by side."""

    estimates: tuple[Estimate, ...]
    """GPU by GPU, in the order of the options."""
    varied: tuple[str, ...]
    """``gpu``, and the options, that have more than one value."""
    left_out: tuple[LeftOut, ...] = ()
    replayed: bool = True
    """Whether the allocator was replayed. Otherwise reserved memory has a range."""

    def to_frame(self) -> DataFrame:
        """Return a data frame of pandas with a line for each estimate, whose columns `flat` names.

        Raises:
            UserError: pandas is not installed.
        """
        from lorabench.estimator.answers.flat import flat
        from lorabench.estimator.frames import frame_of

        return frame_of(with_all_settings(map(flat, self.estimates)))


def combinations(
    model: str | Path | ModelSpec | None, config: str | Path | None, options: Mapping[str, Any]
) -> list[Combination]:
    """Return the recipes that the options stand for: one for each combination of listed values.

    Args:
        model: as in `asked`.
        config: as in `asked`; its method stays unless ``options`` name one.
        options: recipe options; each may be a list of values. Without a method, a config, and an option that a single
            method has, all of `COMPARED_METHODS` are meant. An option goes to the methods that have it.

    Raises:
        UserError: as in `asked`; or a list is empty, or there are more combinations than `MOST_ESTIMATES`.
    """
    listed = {
        name: list(value) if isinstance(value, (list, tuple)) else [value]
        for name, value in options.items()
        if value is not None
    }
    for name, values in listed.items():
        if not values:
            raise UserError(f"{name} is an empty list: name a value, or leave it out")
    model, read = read_once(model, config)
    first = asked(model, read, {})
    if first.imported is None and all(len(methods_with(name)) != 1 for name in listed):
        listed.setdefault("method", [*COMPARED_METHODS])
    listed = dict(sorted(listed.items(), key=lambda item: ORDER.get(item[0], len(ORDER))))
    methods = [option_value("method", method) for method in listed.get("method", [])]
    refuse_too_many(prod(map(len, listed.values())))
    anywhere = frozenset().union(*map(settings_of, methods))
    found = []
    for chosen in product(*listed.values()):
        given = dict(zip(listed, chosen, strict=True))
        if len(methods) > 1:
            ignored = anywhere - settings_of(given["method"])
            given = {name: value for name, value in given.items() if name not in ignored}
        if given not in found:
            found.append(given)
    return [Combination(given, asked(first.spec, read, given)) for given in found]


def refuse_too_many(count: int) -> None:
    """Refuse more estimates than `MOST_ESTIMATES`.

    Raises:
        UserError: ``count`` is larger.
    """
    if count > MOST_ESTIMATES:
        raise UserError(f"these are {count:,} estimates, and the limit is {MOST_ESTIMATES:,}: list fewer values")


def compare(
    found: Sequence[Combination],
    gpus: Sequence[tuple[Device, Calibration | None]] = (),
    on_progress: Callable[[str], None] = lambda what: None,
    *,
    replay: bool = True,
    allocator: AllocatorSettings = DEFAULTS,
    tokens: int | None = None,
    price_per_hour: float | None = None,
) -> Comparison:
    """Return the estimates of all recipes on all ``gpus``, each as `estimate_recipe` gives it.

    ``replay``: replay the allocator, if there are at most `MOST_REPLAYED` estimates; ``allocator`` has its settings.
    A method that the model or a GPU does not support is left out, with the reason.

    Raises:
        UserError: nothing can train, or an option's value is in no recipe that can; there are too many estimates.
    """
    on: Sequence[tuple[Device | None, Calibration | None]] = gpus or [(None, None)]
    refuse_too_many(len(found) * len(on))
    possible: dict[tuple[str | None, Any], tuple[Combination, ResolvedRecipe, Device | None, Calibration | None]] = {}
    refusals: list[tuple[Combination, UserError]] = []
    for (device, calibration), combination in product(on, found):
        try:
            resolved = _possible(combination, device)
        except UserError as error:
            refusals.append((combination, error))
            continue
        name = None if device is None else device.name
        possible.setdefault((name, resolved.recipe), (combination, resolved, device, calibration))
    _refuse_what_is_nowhere([one for one, *_ in possible.values()], refusals)
    replay = replay and len(possible) <= MOST_REPLAYED
    estimates = []
    for number, (combination, resolved, device, calibration) in enumerate(possible.values(), start=1):
        if not has_closed_form(resolved.spec) and len(possible) > MOST_REPLAYED:
            raise UserError(
                f"model_type {resolved.spec.model_type} has no closed form, and {len(possible)} traces take long: "
                f"list at most {MOST_REPLAYED} combinations"
            )
        on_progress(f"{number} of {len(possible)}: {resolved.recipe.label()}")
        estimate = estimate_recipe(resolved, device, calibration, replay=replay, allocator=allocator)
        estimate = replace(estimate, imported=combination.asked.imported)
        estimates.append(with_training(estimate, tokens, price_per_hour))
    return Comparison(
        estimates=tuple(estimates),
        varied=(*(["gpu"] if len(on) > 1 else []), *_varied(found)),
        left_out=tuple(
            dict.fromkeys(
                LeftOut(method=combination.given.get("method"), why=str(refusal)) for combination, refusal in refusals
            )
        ),
        replayed=replay,
    )


def _varied(found: Sequence[Combination]) -> list[str]:
    """Return the options that have several values, in the order of display."""
    values: dict[str, list[Any]] = {}
    for combination in found:
        for name, value in combination.given.items():
            values.setdefault(name, []).append(value)
    return [name for name in ORDER if any(value != values[name][0] for value in values.get(name, []))]


def _possible(combination: Combination, device: Device | None) -> ResolvedRecipe:
    resolved = combination.asked.resolved()
    refuse_impossible(resolved)
    if device is not None:
        from lorabench.estimator.answers.support import refuse_lacking  # not needed without a GPU

        refuse_lacking(resolved.recipe, device)
    return resolved


def _refuse_what_is_nowhere(possible: Sequence[Combination], refusals: Sequence[tuple[Combination, UserError]]) -> None:
    """Refuse an option's value that is only in recipes that cannot train: it is misspelt, or the model lacks it."""
    used: list[tuple[str, Any]] = []
    for combination in possible if refusals else ():
        used += [item for item in combination.given.items() if item not in used]
    for combination, refusal in refusals:
        options = [item for item in combination.given.items() if item[0] != "method"]
        if not possible or any(item not in used for item in options):
            raise refusal
