"""Read a file and recognise, by its content, the tool whose config it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported import (
    accelerate_config,
    axolotl,
    deepspeed,
    llamafactory,
    peft_config,
    torchtune,
    training_arguments,
    trl,
    unsloth,
)
from lorabench.estimator.imported.commands import read_command
from lorabench.estimator.imported.reading import TOOL_KEY, Config, Tool, read_values, shown
from lorabench.estimator.input_files import decode_json, read_input
from lorabench.estimator.plain_yaml import read_plain_yaml

TOOLS: tuple[Tool, ...] = (
    axolotl.TOOL,
    peft_config.TOOL,
    torchtune.TOOL,
    unsloth.TOOL,
    llamafactory.TOOL,
    trl.TOOL,
    accelerate_config.TOOL,
    deepspeed.TOOL,
    training_arguments.TOOL,
)
"""In the order in which they are tried: a config of a tool may have the keys of a later one too."""
LARGEST_BYTES = 2**20
"""Larger than any config."""
ENDINGS = (".yaml", ".yml", ".json", ".sh", ".txt")
"""Files that may be configs when they are named as a model."""
ADAPTER = "adapter_config.json"


def read_config_file(path: Path) -> Config:
    """Return the config of another tool in the file ``path``, or in a folder with an adapter_config.json.

    Raises:
        UserError: it cannot be read; it is no config of a known tool; a value has the wrong type.
    """
    config, name = read_mapping(path)
    tool = tool_of(config)
    if tool is None:
        raise UserError(
            f"{name}: no config of {', '.join(tool.name for tool in TOOLS[:-1])} or {TOOLS[-1].name}: "
            f"its keys are {', '.join(map(shown, list(config)[:4])) or 'none'}"
        )
    return read_values(name, tool, config)


def tool_of(config: Mapping[str, Any]) -> Tool | None:
    """Return the tool of which ``config`` is a config; None if no tool is known."""
    named = config.get(TOOL_KEY)
    if named is not None:
        return next((tool for tool in TOOLS if tool.name == named), None)
    return next((tool for tool in TOOLS if tool.recognised(config)), None)


def read_mapping(path: Path) -> tuple[dict[str, Any], str]:
    """Return the keys and values of a file, and its name in messages.

    Raises:
        UserError: it cannot be read, or has no keys.
    """
    name = str(path)
    try:
        path = path.expanduser()
        if path.is_dir():
            path = path / ADAPTER
        text = read_input(path, "a config", LARGEST_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file: name a config of another tool") from error
    except RuntimeError as error:  # raised by expanduser
        raise UserError(f"{name}: there is no such user, or the home folder is not known") from error
    except OSError as error:
        raise UserError(f"{name}: cannot read it: {error.strerror}") from error
    try:
        words = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text: name a config of another tool") from error
    if path.suffix == ".json":
        try:
            value = decode_json(words.encode())
        except ValueError as error:
            raise UserError(f"{name}: not JSON ({error})") from error
    elif path.suffix not in (".yml", ".yaml") and (path.suffix == ".sh" or _is_command(words)):
        value = read_command(words, name)
    else:
        value, _ = read_plain_yaml(words, name)
    if not isinstance(value, dict):
        raise UserError(f"{name}: has no keys, so it is not a config")
    return value, name


def _is_command(words: str) -> bool:
    """Return whether a text is a command of a shell, rather than YAML."""
    return words.startswith("#!") or re.search(r"^[^#:\n]*\s--[a-z]", words, re.MULTILINE) is not None


def config_named(text: str) -> Config | None:
    """Return the config of another tool if ``text``, named as a model, is a file or folder with one; else None.

    Raises:
        UserError: an adapter_config.json cannot be read; a value has the wrong type.
    """
    path = Path(text)
    try:
        if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
            return read_config_file(path)
        if path.suffix not in ENDINGS or not path.is_file():
            return None
    except (OSError, ValueError):
        return None
    try:
        config, name = read_mapping(path)
    except UserError:
        return None
    of_model = path.suffix == ".json" and "model_type" in config
    tool = None if of_model else tool_of(config)
    return None if tool is None else read_values(name, tool, config)
