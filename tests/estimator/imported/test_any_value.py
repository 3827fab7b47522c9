"""Whatever a config holds, it is read, or refused in one line."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.asked import asked
from lorabench.estimator.imported.commands import read_command
from lorabench.estimator.imported.reading import Tool, read_values
from lorabench.estimator.imported.sources import TOOLS
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.defaults import recipe_for

SPEC = find_model("HuggingFaceTB/SmolLM2-135M")
WORDS = st.sampled_from(
    ["auto", "true", "no", "lora", "qlora", "full", "sft", "dpo", "bf16", "q_proj,v_proj", "all", "0"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a config whose keys with dots are sections."""
    config: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        inner = config
        for section in sections:
            below = inner.setdefault(section, {})
            if not isinstance(below, dict):
                break
            inner = below
        else:
            inner[name] = value
    return config


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_config_of_any_values_is_read_or_refused(tool: Tool, data: st.DataObject) -> None:
    declared = [name for name, key in tool.keys.items() if key.effect]
    flat = data.draw(st.dictionaries(st.sampled_from(declared) | st.text(max_size=6), VALUES, max_size=8))
    with suppress(UserError):
        read = read_values("config", tool, _nested(flat))
        imported = read.on(SPEC)
        _ = read.model
        assert all(each.why for each in imported.not_taken_into_account)
        recipe_for(SPEC, **imported.options)


@given(st.text(alphabet=st.sampled_from("ab $'\"\\\n-=#{}*"), max_size=40))
def test_any_command_is_read_or_refused(text: str) -> None:
    with suppress(UserError):
        assert isinstance(read_command(text, "train.sh"), dict)


@pytest.mark.parametrize("ending", [".yml", ".json", ".sh", ".txt", ""])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_read_or_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    file = tmp_path / f"config{ending}"
    file.write_bytes(content)
    with pytest.raises(UserError):
        asked(None, file, {})
