"""Foreign text never brings control characters to a terminal, whatever the command and format; JSON stays exact."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.check.records import folder, record
from tests.sample_records import MODEL_CONFIG

ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;pwn\x07\x9b2J\u202e"
LINES = f"broke{EVIL}\n\x1b[8mokay"

Run = Callable[..., tuple[object, str, str]]


def _is_clean(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model whose path holds an escape sequence."""
    path = tmp_path / f"a{EVIL}b.json"
    path.write_text(json.dumps(MODEL_CONFIG))
    return str(path)


@pytest.mark.parametrize("format_", ["table", "markdown"])
def test_a_path_is_shown_without_them(lorabench: Run, model: str, format_: str) -> None:
    code, out, err = lorabench("estimate", model, "--gpu", "24GB", "--format", format_)
    assert (code, err) == (0, "")
    assert "pwn" in out
    assert _is_clean(out)


@pytest.mark.parametrize("command", ["estimate", "plan"])
def test_json_keeps_them_exactly_but_escaped(lorabench: Run, model: str, command: str) -> None:
    code, out, _ = lorabench(command, model, "--gpu", "24GB", "--format", "json")
    assert code == 0
    assert _is_clean(out)
    answer = json.loads(out)
    named = answer[0]["recipe"] if command == "estimate" else answer["choices"][0]["recipe"]
    assert named["model"] == model


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": [EVIL]},
        {"model_type": EVIL},
        {"rope_scaling": {"rope_type": EVIL, "factor": 2.0}},
        {"hidden_act": EVIL},
        {"hidden_size": EVIL},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_refused_config_is_quoted_without_them(lorabench: Run, tmp_path: Path, config: dict[str, object]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MODEL_CONFIG | config))
    code, out, err = lorabench("estimate", str(path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert _is_clean(err)


def test_a_suite_is_shown_without_them(lorabench: Run, tmp_path: Path, model: str) -> None:
    path = tmp_path / f"suite{EVIL}.yaml"
    suite = {"name": EVIL, "description": LINES, "matrix": {"model": [model]}, "check": {"speed": "off"}}
    path.write_text(json.dumps(suite))
    code, out, err = lorabench("run", str(path), "--dry-run", "--gpu", "24GB")
    assert (code, err) == (0, "")
    assert "pwn" in out
    assert _is_clean(out)
    path.write_text(json.dumps(suite | {EVIL: 1}))
    code, out, err = lorabench("run", str(path), "--dry-run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert _is_clean(err)


@pytest.mark.parametrize("format_", ["text", "markdown", "junit", "github", "json"])
@pytest.mark.parametrize("against", ["baseline", "estimate"])
def test_records_are_checked_without_them(lorabench: Run, tmp_path: Path, format_: str, against: str) -> None:
    before = folder(tmp_path / "before", record(model=EVIL, suite=EVIL, device_name=EVIL, unstable=(EVIL,)))
    failed = record(model=EVIL, suite=EVIL, device_name=EVIL, outcome="error", message=LINES, traceback=LINES)
    after = folder(tmp_path / "after", failed)
    options = ("--baseline", before) if against == "baseline" else ("--against-estimate",)
    _, out, err = lorabench("check", after, *options, "--format", format_)
    assert out
    assert _is_clean(out)
    assert _is_clean(err)
    if format_ == "json":
        assert json.loads(out)["recipes"][0]["recipe"]["model"] == EVIL


def test_arguments_are_quoted_without_them(lorabench: Run) -> None:
    for arguments in ([EVIL], ["estimate", f"--{EVIL}"], ["estimate", EVIL], ["estimate", "x", "--gpu", EVIL]):
        code, out, err = lorabench(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert _is_clean(err)


def test_commands_print_through_one_function() -> None:
    printing = re.compile(r"\bclick\.s?echo\(|(?<!\.)\bprint\(|\bsys\.std(?:out|err)\.write\(")
    package = ROOT / "src" / "lorabench"
    files = [path for path in [*package.glob("*.py"), *(package / "cli").glob("*.py")] if path.name != "output.py"]
    found = {path.name: len(printing.findall(path.read_text(encoding="utf-8"))) for path in files}
    assert {name: count for name, count in found.items() if count} == {"tracing.py": 1}  # to a stream of its own
