"""Find a model's shapes by name: in the shipped catalogue, in a file or folder, or on the Hugging Face Hub."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.input_files import decode_json, read_input
from lorabench.estimator.models.hub import HUB_ID, Refusal, fetch_config
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.spec import ModelSpec

CONFIGS = Path(__file__).parent / "configs"
"""One folder per publisher, with one config.json per model, named as on the Hub."""
SIZED = r".*(^|-)(\d+x)?\d+(\.\d+)?[bm](-.*)?"
"""Regular expression of a name up to the number of parameters; release and tuning are left out."""
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
    3. shipped models of the same shapes, by the beginning of their last parts, up to the number of parameters or
       further (``mixtral-8x7b``); the spec's ``assumptions`` say so;
    4. a Hub id; only its config.json is downloaded.

    A text that starts with ``.``, ``/`` or ``~`` or ends in ``.json`` is always a path.

    Raises:
        UserError: nothing has that name, several shipped models have it, or `read_config` refuses its config.
    """
    if isinstance(text, Path):
        return _read_path(text, str(text))
    if not isinstance(text, str):
        raise UserError(f"a model is a name or a path, and {text!r} is neither")
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
    begun = _begun(text)
    if begun is not None:
        return begun
    if re.fullmatch(HUB_ID, text):
        return read_config(_decode(_fetch(text)), text)
    raise UserError(f"no model {text!r} in the catalogue and no such file or folder: {_nearest(text)}")


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
    named = [name for name in model_names() if name.lower().rpartition("/")[2] == wanted]
    if len(named) > 1:
        raise UserError(f"{text!r} fits several models: name {' or '.join(named)}")
    return named[0] if named else None


def _begun(text: str) -> ModelSpec | None:
    """Return the model whose name begins with ``text``. If several have the same shapes, return the one with the
    shortest name."""
    if not re.fullmatch(SIZED, text.lower()):
        return None
    names = [name for name in model_names() if name.lower().rpartition("/")[2].startswith(f"{text.lower()}-")]
    names.sort(key=len)
    specs = [read_config(_decode(CONFIGS / f"{name}.json"), name) for name in names]
    if not specs or any(replace(spec, name=specs[0].name) != specs[0] for spec in specs):
        return None
    others = f", not {' or '.join(names[1:])} (of the same shapes)" if names[1:] else ""
    return replace(specs[0], assumptions=(f"model {text} means {names[0]}{others}",))


def _nearest(text: str) -> str:
    by_last_part = {name.rpartition("/")[2]: name for name in model_names()}
    choices = by_last_part if "/" not in text else model_names()
    return f"{did_you_mean(text, choices)} (lorabench models lists all)"


def _read_path(path: Path, text: str) -> ModelSpec:
    try:
        path = path.expanduser()
        if path.is_dir():
            if not (path / "config.json").is_file():
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
        config = decode_json(raw)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): name the model's config.json") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: has no JSON object, so it is not a config.json")
    return config


def _fetch(repository: str) -> Path:
    found = fetch_config(repository)
    if isinstance(found, Refusal):
        raise UserError(f"no model {repository!r} in the catalogue, and {found.why}; {_nearest(repository)}")
    return found
