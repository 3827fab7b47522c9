from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import CliRunner

from lorabench.cli.models import command
from lorabench.estimator.models.catalogue import model_names


def output(*arguments: str) -> str:
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    return ran.stdout


def test_the_table_lists_every_model_whole_within_80_columns() -> None:
    lines = output().splitlines()
    assert lines[0].split() == ["model", "params", "layers", "family"]
    assert {line.split()[0] for line in lines[1:]} == set(model_names())
    assert max(map(len, lines)) <= 80
    assert "meta-llama/Llama-3.1-8B 8.03B 32 llama" in [" ".join(line.split()) for line in lines]


def test_a_narrow_window_does_not_cut_what_is_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = output()
    monkeypatch.setenv("COLUMNS", "40")
    assert output() == whole


def test_models_are_listed_from_the_smallest_to_the_largest() -> None:
    counts = [model["parameters"] for model in json.loads(output("--format", "json"))]
    assert counts == sorted(counts)


def test_json_and_csv_have_exact_integers() -> None:
    models = json.loads(output("--format", "json"))
    (llama,) = [model for model in models if model["name"] == "meta-llama/Llama-3.1-405B"]
    assert llama["parameters"] == 405_853_388_800
    assert (llama["num_hidden_layers"], llama["hidden_size"], llama["vocab_size"]) == (126, 16384, 128256)
    rows = list(csv.DictReader(io.StringIO(output("--format", "csv"))))
    assert [row["name"] for row in rows] == [model["name"] for model in models]
    assert [int(row["parameters"]) for row in rows] == [model["parameters"] for model in models]


def test_markdown_is_a_table() -> None:
    lines = output("--format", "markdown").splitlines()
    assert lines[1] == "| --- | ---: | ---: | --- |"
    assert len(lines) == 2 + len(model_names())
    assert "| meta-llama/Llama-3.1-405B | 406B | 126 | llama |" in lines
