"""A suite as a YAML file, whose matrix expands to recipes.

.. code-block:: yaml

    name: rank-sweep
    steps: 30
    repeats: 2
    defaults: {seq_len: 1024, batch_size: 4}
    defaults_when:
      - when: {method: full, model: HuggingFaceTB/SmolLM2-360M}
        use: {batch_size: 2, optim: adamw_8bit}
    matrix:
      model: [HuggingFaceTB/SmolLM2-135M, HuggingFaceTB/SmolLM2-360M]
      method: [full, lora, qlora]
      rank: [8, 64]
    exclude:
      - {method: qlora, rank: [32, 64]}
    include:
      - {model: HuggingFaceTB/SmolLM2-135M, method: lora, rank: 256}
    check: {speed: 5%, nvml: off}

Every combination of the matrix is a recipe. An option that does not apply to the combination's method (a rank with
full) is dropped, and equal recipes run once. Values of the matrix or an include override `defaults_when`, whose later
entries override earlier ones; both override `defaults`. A condition in `when` or `exclude` names a value, or a list of
values; one of them must match. `check` sets how much worse the results may get (`check.thresholds`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from lorabench.bench.check.thresholds import Thresholds, read_share, with_shares
from lorabench.bench.suites.suite import AMOUNTS, BY_HAND, Suite, check_trainable
from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.input_files import read_input
from lorabench.estimator.methods.catalogue import Method
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.plain_yaml import Trail, read_plain_yaml
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.other_names import name_here
from lorabench.estimator.recipes.recipe import SETTINGS, make_recipe, option_value, settings_of
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.typed_values import convert

SHIPPED = Path(__file__).parent
MOST_RECIPES = 10_000
MOST_COMPARED = 50_000
"""Most pairs of a recipe and a condition, in ``defaults_when`` or ``exclude``: each may take a tenth of a
millisecond."""
LARGEST_FILE_BYTES = 2**19


def shipped_suites() -> dict[str, Path]:
    """Return name → path of the shipped suites."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_suite(name_or_path: str) -> Suite:
    """Return the suite in a YAML file, or the shipped suite of that name, fully checked.

    Raises:
        UserError: there is no such file, or it is not YAML. The file has a tag, an unknown or repeated key, or a value
            of the wrong type. A model or module is unknown, options contradict each other, or no recipe is left. The
            message has file and line.
    """
    path = shipped_suites().get(name_or_path, Path(name_or_path))
    return _SuiteFile(path).suite()


KEYS = (
    "name",
    "description",
    "steps",
    "warmup_steps",
    "repeats",
    "probe",
    "then",
    "defaults",
    "defaults_when",
    "matrix",
    "include",
    "exclude",
    "check",
)
Condition = dict[str, frozenset[Any]]
"""Recipe option → permitted values."""


class _Conditional(Struct):
    """Defaults for recipes that meet a condition."""

    when: Condition
    use: dict[str, Any]
    applied: bool = False


class _SuiteFile:
    """A suite's YAML file. Every error message has the line."""

    def __init__(self, path: Path) -> None:
        try:
            text = read_input(path, "a suite", LARGEST_FILE_BYTES).decode("utf-8-sig")
        except FileNotFoundError as error:
            near = did_you_mean(path.stem, shipped_suites())
            raise UserError(f"{path}: no such suite: name a YAML file or a shipped suite ({near})") from error
        except OSError as error:
            raise UserError(f"{path}: cannot read the suite: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not a suite: not UTF-8 text") from error
        self.path = path
        self.specs: dict[str, ModelSpec] = {}
        """Name in the suite → shapes."""
        self.latest: tuple[dict[str, Any], ResolvedRecipe] | tuple[None, None] = None, None
        """Options of a recipe, and the recipe."""
        self.value, self.lines = read_plain_yaml(text, str(path))

    def suite(self) -> Suite:
        """Check every value and expand the matrix."""
        value = self.value
        if not isinstance(value, dict):
            raise UserError(f"{self.path}: a suite is a mapping with the keys {', '.join(KEYS)}")
        for key in value:
            if key in SETTINGS:
                raise self._error((key,), f"{key} is a recipe option: write it into matrix, include or defaults")
        self._known_keys(value, KEYS, (), "key")
        name = self._typed(value.get("name", self.path.stem), Annotated[str, Meta(min_length=1)], ("name",))
        if name == BY_HAND:
            raise self._error(("name",), f"{BY_HAND!r} is reserved for single recipes: choose another name")
        description = self._typed(value.get("description", ""), str, ("description",))
        amounts = {key: self._typed(value[key], kind, (key,)) for key, kind in AMOUNTS.items() if key in value}
        return Suite(
            name=name,
            description=description,
            recipes=self._recipes(),
            probe=self._typed(value.get("probe", False), bool, ("probe",)),
            thresholds=self._thresholds(value.get("check", {})),
            **amounts,
        )

    def _recipes(self) -> tuple[ResolvedRecipe, ...]:
        """Return the recipes of the matrix that are not excluded, and the included ones, without duplicates."""
        self.defaults = self._options(self.value.get("defaults", {}), ("defaults",))
        self.conditional = [self._conditional(entry, path) for path, entry in self._entries("defaults_when")]
        found: dict[str, ResolvedRecipe] = {}
        for item in itertools.chain(self._of_matrix(), self._included()):
            found.setdefault(item.digest, item)
        for item in self._then():
            found.setdefault(item.digest, item)
        if not found:
            if "exclude" in self.value:
                raise self._error(
                    ("exclude",), "exclude drops every recipe of the matrix: exclude less, or include some"
                )
            raise UserError(f"{self.path}: no recipe in it: add matrix or include")
        for index, conditional in enumerate(self.conditional):
            if not conditional.applied:
                raise self._error(
                    ("defaults_when", index), "no recipe of the suite meets this condition: remove or fix it"
                )
        return tuple(found.values())

    def _of_matrix(self) -> Iterator[ResolvedRecipe]:
        excluded = [self._condition(entry, path) for path, entry in self._entries("exclude")]
        useful = [False] * len(excluded)
        for axes in self._matrix():
            options = {**self._defaults_of(axes), **axes}
            options = _applicable(options, options.get("method"))
            settings = self._settings(options) if excluded else {}
            dropped = [_holds(condition, settings) for condition in excluded]
            useful = [before or now for before, now in zip(useful, dropped, strict=True)]
            if not any(dropped):
                yield self._plan(options, ("matrix",))
        if not all(useful):
            raise self._error(
                ("exclude", useful.index(False)), "exclude matches no recipe of the matrix: remove or fix it"
            )

    def _refuse_many_comparisons(self, recipes: int) -> None:
        """Refuse a suite whose ``recipes``, times its conditions, are more than `MOST_COMPARED`."""
        for key in ("defaults_when", "exclude"):
            conditions = len(self._entries(key))
            if recipes * conditions > MOST_COMPARED:
                raise self._error(
                    (key,),
                    f"{conditions:,} conditions for each of {recipes:,} recipes are too many: join conditions that "
                    f"differ in one value by a list, or split the suite (at most {MOST_COMPARED:,} in all)",
                )

    def _included(self) -> Iterator[ResolvedRecipe]:
        self._refuse_many_comparisons(len(self._entries("include")))
        for path, entry in self._entries("include"):
            options = self._options(entry, path)
            defaults = self._defaults_of(options)
            method = {**defaults, **options}.get("method")
            yield self._plan({**_applicable(defaults, method), **options}, path)

    def _then(self) -> tuple[ResolvedRecipe, ...]:
        """Return the recipes of the shipped suite that ``then`` names; none without ``then``."""
        if "then" not in self.value:
            return ()
        name = self._typed(self.value["then"], str, ("then",))
        suites = shipped_suites()
        if name not in suites or name == self.path.stem:
            others = [other for other in suites if other != self.path.stem]
            raise self._error(("then",), f"no shipped suite {quoted(name)} can follow: {did_you_mean(name, others)}")
        return load_suite(name).recipes

    def _thresholds(self, value: Any) -> Thresholds:
        if not isinstance(value, dict):
            raise self._error(("check",), "check must be a mapping of thresholds, such as speed: 5%")
        self._known_keys(value, Thresholds.__struct_fields__, ("check",), "threshold")
        shares = {}
        for name, share in value.items():
            try:
                shares[name] = read_share(share)
            except UserError as error:
                raise self._error(("check", name), f"{name}: {error}") from error
        return with_shares(Thresholds(), shares)

    def _matrix(self) -> Iterator[dict[str, Any]]:
        """Yield the options of every combination of the matrix."""
        matrix = self.value.get("matrix", {})
        if not matrix:
            return
        axes = self._options(matrix, ("matrix",), lists=True)
        count = math.prod(map(len, axes.values()))
        if count > MOST_RECIPES:
            raise self._error(("matrix",), f"it expands to {count:,} recipes, but at most {MOST_RECIPES:,} are allowed")
        self._refuse_many_comparisons(count)
        for combination in itertools.product(*axes.values()):
            yield dict(zip(axes, combination, strict=True))

    def _defaults_of(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the suite's defaults for a recipe with ``options``. Some may not apply to its method."""
        defaults = dict(self.defaults)
        settings = None
        for conditional in self.conditional:
            settings = settings or self._settings({**defaults, **options})
            if _holds(conditional.when, settings):
                settings = None
                defaults |= conditional.use
                conditional.applied = True
        return defaults

    def _conditional(self, entry: Any, path: Trail) -> _Conditional:
        if not isinstance(entry, dict):
            raise self._error(path, f"{_dotted(path)} must be a mapping with when and use")
        self._known_keys(entry, ("when", "use"), path, "key")
        for key in ("when", "use"):
            if not entry.get(key):
                raise self._error(path, f"{_dotted(path)} has no {key}: write both when and use")
        when = self._condition(entry["when"], (*path, "when"))
        return _Conditional(when, self._options(entry["use"], (*path, "use")))

    def _condition(self, value: Any, path: Trail) -> Condition:
        """Return a condition with its values in the spelling of recipes."""
        permitted: dict[str, list[Any]] = self._options(value, path, lists=True)
        if "model" in permitted:
            permitted["model"] = [self._spec(name, (*path, "model")).name for name in permitted["model"]]
        for field in NAMES_OF_MODULES & permitted.keys():
            permitted[field] = [_canonical(field, names) for names in permitted[field]]
        return {field: frozenset(values) for field, values in permitted.items()}

    def _settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return what conditions compare: the settings of a recipe with ``options``, possible or not."""
        options = _applicable(options, options.get("method"))
        spec = self._spec(options["model"], ("matrix", "model")) if "model" in options else None
        if spec is not None:
            with suppress(UserError):  # options that contradict each other
                return self._recipe(spec, options).recipe.settings()
        settings = make_recipe("any", method=options.get("method"), rank=options.get("rank")).settings() | options
        if spec is not None:
            settings["model"] = spec.name
        for field in NAMES_OF_MODULES:
            if field in settings:
                settings[field] = _canonical(field, settings[field])
        return settings

    def _plan(self, options: dict[str, Any], path: Trail) -> ResolvedRecipe:
        if "model" not in options:
            raise self._error(path, "no model: add model here or in defaults")
        spec = self._spec(options["model"], (*path, "model"))
        try:
            resolved = self._recipe(spec, options)
            check_trainable(resolved)
        except UserError as error:
            raise self._error(path, str(error)) from error
        return resolved

    def _recipe(self, spec: ModelSpec, options: dict[str, Any]) -> ResolvedRecipe:
        """Return the recipe with ``options``, which conditions and the matrix ask for in turn."""
        latest, resolved = self.latest
        if resolved is None or options != latest:
            resolved = recipe_for(spec, **_but_the_model(options))
            self.latest = dict(options), resolved
        return resolved

    def _spec(self, name: str, path: Trail) -> ModelSpec:
        if name not in self.specs:
            try:
                self.specs[name] = find_model(name)
            except UserError as error:
                raise self._error(path, str(error)) from error
        return self.specs[name]

    def _entries(self, key: str) -> list[tuple[Trail, Any]]:
        entries = self.value.get(key, [])
        if not isinstance(entries, list):
            raise self._error((key,), f"{key} must be a list of mappings")
        return [((key, index), entry) for index, entry in enumerate(entries)]

    def _options(self, value: Any, path: Trail, *, lists: bool = False) -> dict[str, Any]:
        """Return recipe options with checked types; as lists if ``lists``."""
        if not isinstance(value, dict):
            raise self._error(path, f"{_dotted(path)} must be a mapping of recipe options")
        self._known_keys(value, tuple(SETTINGS), path, "recipe option")
        options: dict[str, Any] = {}
        for field, given in value.items():
            at = (*path, field)
            if lists and isinstance(given, list):
                if not given:
                    raise self._error(at, f"{_dotted(at)} is an empty list: add a value or remove it")
                options[field] = [self._option(item, field, (*at, index)) for index, item in enumerate(given)]
            else:
                option = self._option(given, field, at)
                options[field] = [option] if lists else option
        return options

    def _option(self, value: Any, field: str, path: Trail) -> Any:
        if value is None:
            raise self._error(path, f"{_dotted(path)} has no value: add one or remove it")
        try:
            value = option_value(field, value)
        except UserError as error:
            raise self._error(path, str(error)) from error
        return self._typed(value, SETTINGS[field], path)

    def _typed(self, value: Any, kind: Any, path: Trail) -> Any:
        try:
            return convert(value, kind, _dotted(path))
        except UserError as error:
            raise self._error(path, str(error)) from error

    def _known_keys(self, value: dict[str, Any], known: tuple[str, ...], path: Trail, what: str) -> None:
        for key in value:
            if key not in known:
                near = name_here(key, known, "{}: {}".format) or did_you_mean(key, known)
                raise self._error((*path, key), f"unknown {what} {quoted(key)}: {near}")

    def _error(self, path: Trail, message: str) -> UserError:
        while path and path not in self.lines:
            path = path[:-1]
        return UserError(f"{self.path} line {self.lines.get(path, 1)}: {message}")


NAMES_OF_MODULES = {"target_modules", "modules_to_save"}


def _holds(condition: Condition, settings: dict[str, Any]) -> bool:
    return all(settings.get(field) in values for field, values in condition.items())


def _canonical(field: str, names: str) -> Any:
    """Return names of modules in the spelling of recipes."""
    return make_recipe("any", **{field: names}).settings()[field]


def _applicable(options: dict[str, Any], method: str | None) -> dict[str, Any]:
    """Return ``options`` without those that do not apply to ``method``."""
    applicable = settings_of(_method(method))
    return {key: value for key, value in options.items() if key in applicable}


@cache
def _method(given: str | None) -> Method:
    """Return the method of recipes that name ``given``."""
    return make_recipe("any", method=given).method


def _but_the_model(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "model"}


def _dotted(path: Trail) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
