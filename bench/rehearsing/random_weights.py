"""Checkpoints without weights: ``from_pretrained`` needs only a model's config.

A sparse file with the names, types and shapes of all weights replaces the checkpoint. It takes no space on the disk,
and transformers loads it like any other.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "LORABENCH_REHEARSED_RANDOM_WEIGHTS"
"""Variable that is set if models are loaded without their weights."""
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32"}
TYPES |= {"uint8": "U8", "int8": "I8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
"""torch's name of a dtype → its name in the safetensors format."""
OF_PLACES = ("subfolder", "revision", "force_download", "variant", "use_safetensors")
"""Options of ``from_pretrained`` that say which file to load."""


def begin() -> None:
    """Make transformers load models without their weights, as soon as the program imports it."""
    module = "transformers.modeling_utils"
    if module in sys.modules:
        _load_without_weights()
    else:
        sys.meta_path.insert(0, importlib.import_module("sitecustomize").After(module, _load_without_weights))


def _load_without_weights() -> None:
    models: Any = importlib.import_module("transformers.modeling_utils").PreTrainedModel
    load = models.from_pretrained.__func__

    def from_pretrained(cls: Any, /, path: Any, *arguments: Any, config: Any = None, **options: Any) -> Any:
        if path is None or options.get("state_dict") is not None or options.get("gguf_file"):
            return load(cls, path, *arguments, config=config, **options)
        if config is None or isinstance(config, str | os.PathLike):
            places = {name: options[name] for name in (*OF_PLACES[:3], "token", "cache_dir") if name in options}
            config = cls.config_class.from_pretrained(config or path, **places)
        with tempfile.TemporaryDirectory(prefix="lorabench-") as folder:
            write_hollow(cls, config, Path(folder))
            options = {name: value for name, value in options.items() if name not in OF_PLACES}
            loaded = load(cls, folder, *arguments, config=config, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # the second is loading info
        model.name_or_path = model.config.name_or_path = str(path)
        return loaded

    models.from_pretrained = classmethod(from_pretrained)


def write_hollow(cls: Any, config: Any, folder: Path) -> None:
    """Write the config and a sparse checkpoint of ``cls`` into ``folder``.

    Raises:
        ValueError: the model is already quantised, so the config does not say the shapes of its weights.
    """
    import torch

    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "--random-weights cannot replace weights that are already quantised: name the model that they were made "
            "from, and quantise it while loading"
        )
    dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)  # its name in transformers 4
    with torch.device("meta"), _default_dtype(dtype or torch.float32):
        shell = cls._from_config(config) if hasattr(cls, "_from_config") else cls(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    written: set[int] = set()
    end = 0
    for name, weight in shell.state_dict(keep_vars=True).items():
        if id(weight) in written:  # tied to a weight that is written
            continue
        written.add(id(weight))
        begin, end = end, end + weight.numel() * weight.element_size()
        kind = TYPES[str(weight.dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    config.save_pretrained(folder)


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """Let torch make weights of ``dtype``, as transformers does inside of ``_from_config``."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
