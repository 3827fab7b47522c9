"""Find a model's shapes by name: in the shipped catalogue, in a file or folder, or on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.input_files import decode_config, read_input
from lorabench.estimator.models.hub import HUB_ID, Refusal, fetch_config
from lorabench.estimator.models.mirrors import names_behind, quantization_of
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.spec import ModelSpec

CONFIGS = Path(__file__).parent / "configs"
"""One folder per publisher, with one config.json per model, named as on the Hub; ``sources.csv`` says where each was
read."""
SIZE = r"(?:^|-)(e?(?:\d+x)?\d+(?:[._]\d+)?[bm]\d*)(?=-|$)"
"""Regular expression of the number of parameters in a name in lower case, such as ``8x7b``, ``1.5b`` or ``350m``."""
LENGTHS = frozenset({"max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"})
"""Keys of a config that decide how long a text may be, and no shape."""
LARGEST_CONFIG_BYTES = 16 * 2**20
"""Larger than any config.json. A weights file that is named by mistake is not read into memory."""


@cache
def model_names() -> tuple[str, ...]:
    """Return the names (Hub ids) of the shipped models, sorted by publisher and name."""
    names = (f"{file.parent.name}/{file.name.removesuffix('.json')}" for file in CONFIGS.glob("*/*.json"))
    return tuple(sorted(names, key=str.lower))


def find_model(text: str | Path) -> ModelSpec:
    """Return the shapes of the model that ``text`` names.

    The function tries these, in order:

    1. a shipped model, by its Hub id or the last part of it, in any case;
    2. the path of a config.json, or of a folder with one;
    3. a shipped model, by the name of a copy, a quantised copy or a tuned release (`mirrors`);
    4. shipped models of the same shapes, by the beginning of their last parts, up to the number of parameters or
       further (``mixtral-8x7b``);
    5. a Hub id; only its config.json is downloaded.

    After 3 and 4 the spec's ``assumptions`` say which model was meant.

    A text that starts with ``.``, ``/`` or ``~`` or ends in ``.json`` is always a path.

    Raises:
        UserError: nothing has that name, several shipped models have it, or `read_config` refuses its config.
    """
    if isinstance(text, Path):
        return _read_path(text, str(text))
    if not isinstance(text, str):
        raise UserError(f"a model is a name or a path, and {quoted(text)} is neither")
    if not text.strip():
        raise UserError(f"a model needs a name: {_nearest('')}")
    if "\0" in text:
        raise UserError("a model's name cannot hold a null character")
    if _is_path(text):
        return _read_path(Path(text), text)
    shipped = _shipped_name(text)
    if shipped is not None:
        return read_config(_decode(CONFIGS / f"{shipped}.json"), shipped)
    if _exists(Path(text)):
        return _read_path(Path(text), text)
    behind = _behind(text)
    if behind is not None:
        return _meant(text, behind, " (same shapes)")
    begun = _begun(text)
    if begun:
        others = f", not {' or '.join(begun[1:])} (of the same shapes)" if begun[1:] else ""
        return _meant(text, begun[0], others)
    if re.fullmatch(HUB_ID, text):
        return read_config(_decode(_fetch(text)), text)
    raise UserError(f"no model {quoted(text)} in the catalogue and no such file or folder: {_nearest(text)}")


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.endswith(".json")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _shipped_name(text: str) -> str | None:
    wanted = text.lower()
    for name in model_names():
        if name.lower() == wanted:
            return name
    named = [name for name in model_names() if _last_part(name) == wanted]
    if len(named) > 1:
        raise UserError(f"{quoted(text)} fits several models: name {' or '.join(named)}")
    return named[0] if named else None


def _behind(text: str) -> str | None:
    """Return the shipped model of which ``text`` names a copy or a tuned release."""
    by_name = {_last_part(name): name for name in model_names()} | {name.lower(): name for name in model_names()}
    return next((by_name[name] for name in names_behind(text) if name in by_name), None)


def _begun(text: str) -> Sequence[str]:
    """Return the models whose names begin with ``text``, the shortest name first, if all have the same shapes."""
    publisher, _, beginning = text.lower().rpartition("/")
    if not re.search(SIZE, beginning):
        return ()
    names = [name for name in model_names() if _last_part(name).startswith(f"{beginning}-")]
    names = sorted((name for name in names if not publisher or name.lower().startswith(f"{publisher}/")), key=len)
    configs = [_decode(CONFIGS / f"{name}.json") for name in names]
    shapes = [{key: config[key] for key in config.keys() - LENGTHS} for config in configs]
    return names if all(shape == shapes[0] for shape in shapes) else ()


def _meant(text: str, name: str, why: str) -> ModelSpec:
    config = _decode(CONFIGS / f"{name}.json")
    quantization = quantization_of(text)
    spec = read_config(config if quantization is None else {**config, "quantization_config": quantization}, name)
    return replace(spec, assumptions=(f"model {text} means {name}{why}", *spec.assumptions))


def _nearest(text: str) -> str:
    """Return a clause with the shipped models nearest to ``text``, those of the same number of parameters first."""
    publisher, _, last = text.rpartition("/")
    known = any(name.lower().startswith(f"{publisher.lower()}/") for name in model_names())
    word = text if known else last
    choices = model_names() if known else tuple(name.rpartition("/")[2] for name in model_names())
    size = re.search(SIZE, last.lower())
    same_size = [name for name in choices if size and (of := re.search(SIZE, _last_part(name))) and of[1] == size[1]]
    return f"{did_you_mean(word, same_size or choices)} (lorabench models lists all)"


def _last_part(name: str) -> str:
    return name.lower().rpartition("/")[2]


def _read_path(path: Path, text: str) -> ModelSpec:
    try:
        path = path.expanduser()
        if path.is_dir():
            if not (path / "config.json").exists():
                raise UserError(f"{text}: the folder has no config.json")
            path = path / "config.json"
        config = _decode(path)
    except FileNotFoundError as error:
        model = path.parent.name if path.name == "config.json" else path.stem
        raise UserError(f"{text}: no such file: name a config.json or a model: {_nearest(model)}") from error
    except RuntimeError as error:  # raised by expanduser
        raise UserError(f"{text}: there is no such user, or the home folder is not known") from error
    except OSError as error:
        raise UserError(f"{text}: cannot read it: {error.strerror}") from error
    return read_config(config, text.encode(errors="replace").decode())  # a path may have bytes that are not UTF-8


def _decode(path: Path) -> dict[str, Any]:
    raw = read_input(path, "a config.json", LARGEST_CONFIG_BYTES)
    try:
        config = decode_config(raw)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): name the model's config.json") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: has no JSON object, so it is not a config.json")
    return config


def _fetch(repository: str) -> Path:
    found = fetch_config(repository)
    if isinstance(found, Refusal):
        raise UserError(f"no model {quoted(repository)} in the catalogue, and {found.why}; {_nearest(repository)}")
    return found
