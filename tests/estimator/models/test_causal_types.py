"""The types of models that transformers can build are read from its source."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorabench.estimator.models.causal_types import causal_model_types

pytestmark = pytest.mark.versions


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    causal_model_types.cache_clear()
    yield
    causal_model_types.cache_clear()


def test_they_are_those_of_the_installed_transformers_which_is_not_imported() -> None:
    code = """
import sys
from lorabench.estimator.models.causal_types import causal_model_types
types = causal_model_types()
assert "transformers" not in sys.modules
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as imported
assert set(types) == set(imported), set(types) ^ set(imported)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def written(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "modeling_auto.py"
    path.write_text(source)
    monkeypatch.setattr("lorabench.estimator.models.causal_types.FILE", path)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict([(made_up(), 'X')])",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict()",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = {1: 2}",
    ],
)
def test_a_version_that_writes_them_otherwise_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    written(source, tmp_path, monkeypatch)
    assert "llama" in causal_model_types()


def test_a_dictionary_is_read_like_a_list_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = {'own': 'OwnForCausalLM'}", tmp_path, monkeypatch)
    assert set(causal_model_types()) == {"own"}
