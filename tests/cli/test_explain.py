from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from lorabench.cli.estimate import command
from lorabench.estimator.errors import UserError

SMALL = ("openai-community/gpt2", "--seq-len", "256")


def output(*arguments: str) -> str:
    method = [] if "--method" in arguments else ["--method", "lora"]
    ran = CliRunner().invoke(command, [*SMALL, *arguments, *method], catch_exceptions=False)
    assert ran.exit_code == 0
    return ran.stdout


def derivation(*arguments: str) -> list[str]:
    """Return the lines after the estimate."""
    lines = output("--explain", *arguments).splitlines()
    return lines[lines.index("Symbols") :]


def test_the_derivation_follows_the_estimate_in_the_order_of_reasoning() -> None:
    text = output("--explain", "--method", "qlora")
    assert text.startswith(output("-v", "--method", "qlora").rstrip("\n"))
    titles = [line.split(":")[0] for line in derivation("--method", "qlora") if line[:1].strip()]
    assert titles == [
        "Symbols",
        "Weights",
        "Quantised weights",
        "Adapters",
        "Gradients",
        "Optimizer states",
        "What one layer saves for backward",
        "Activations at the peak",
        "Logits at the peak",
        "Temporaries at the peak",
        "Buffers",
        "Workspaces",
        "Phases",
        "Allocator and device",
        "Segments at the peak",
    ]


def test_the_derivation_fits_a_terminal_of_80_columns() -> None:
    assert max(map(len, derivation("--method", "full"))) <= 80


def test_a_line_has_formula_values_bytes_and_source() -> None:
    text = " ".join(output("--explain").split())
    assert "V·h · 2 B = 38,597,376 · 2 = 77,194,752 B = 73.6 MiB [transformers: loads parameters in bfloat16]" in text


def test_markdown_has_a_table_for_each_subject() -> None:
    text = output("--explain", "--format", "markdown")
    assert "### Weights: " in text
    assert (
        "| transformer.wte | V·h · 2 B | 38,597,376 · 2 | 77,194,752 | 73.6 MiB | "
        "transformers: loads parameters in bfloat16 |"
    ) in text


def test_json_adds_the_derivation_to_the_estimate() -> None:
    explained = json.loads(output("--explain", "--format", "json"))
    explanation = explained.pop("explanation")
    assert explained == json.loads(output("--format", "json"))
    said = {part["component"]: sum(line["bytes"] for line in part["lines"]) for part in explanation["sections"]}
    assert said["adapters"] == explained["memory"]["components"]["adapters"]
    assert {symbol["name"]: symbol["value"] for symbol in explanation["symbols"]}["h"] == 768


def test_csv_is_refused() -> None:
    with pytest.raises(
        UserError, match="--explain does not fit into one csv row: use --format table, markdown or json"
    ):
        CliRunner().invoke(command, [*SMALL, "--explain", "--format", "csv"], catch_exceptions=False)
