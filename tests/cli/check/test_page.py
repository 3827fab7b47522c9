"""Every command of docs/check.md is run where the page says, and the options of every snippet exist."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from lorabench.bench.check.findings import METRICS
from lorabench.bench.check.statistics import SIGNIFICANCE
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.suites.suite_file import load_suite
from lorabench.cli import COMMANDS, lorabench, main

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/check.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "docs/examples/check"
BLOCKS: list[str] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
SNIPPETS: list[Any] = [yaml.safe_load(block) for block in BLOCKS]


@pytest.mark.parametrize(
    ("command", "output", "code"),
    re.findall(r"```console\n\$ ([^\n]+)\n(.*?)\$ echo \$\?\n(\d)\n```", PAGE, re.DOTALL),
)
def test_a_command_prints_what_the_page_shows(
    command: str,
    output: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "check")
    monkeypatch.chdir(tmp_path / "check")
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command)[1:])
    said = capsys.readouterr()
    assert said.out + said.err == output
    assert stopped.value.code == int(code)


def test_the_page_shows_every_exit_code_of_check() -> None:
    assert set(re.findall(r"\$ echo \$\?\n(\d)\n", PAGE)) == {"0", "1", "2", "3"}


def test_the_page_tells_every_threshold_with_its_default_and_every_metric() -> None:
    told = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| ([\d.]+)% \|", PAGE, re.MULTILINE))
    assert {name: float(share) / 100 for name, share in told.items()} == {
        name: pytest.approx(getattr(Thresholds(), name)) for name in Thresholds.__struct_fields__
    }
    assert all(f"`{metric}`" in PAGE for metric in METRICS)
    assert f"must be {100 * SIGNIFICANCE:g} % at most" in PAGE


def test_the_suite_of_the_page_has_its_thresholds(tmp_path: Path) -> None:
    [suite] = [block for block in BLOCKS if "matrix:" in block]
    path = tmp_path / "suite.yaml"
    path.write_text(suite)
    thresholds = load_suite(str(path)).thresholds
    assert (thresholds.speed, thresholds.nvml, thresholds.memory) == (0.05, None, 0.005)


def scripts(value: Any) -> list[str]:
    """Return every shell line of a workflow."""
    if isinstance(value, dict):
        lines = [line for key in ("run", "script") for line in [value.get(key)] if isinstance(line, str)]
        return lines + [line for one in value.values() for line in scripts(one)]
    if isinstance(value, list):
        return [line for one in value for line in ([one] if isinstance(one, str) else scripts(one))]
    return []


def lorabench_commands() -> list[str]:
    hook = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]
    commands = []
    for snippet in SNIPPETS:
        if "repos" in snippet:
            [used] = snippet["repos"][0]["hooks"]
            assert used["id"] == hook["id"]
            commands.append(shlex.join([*shlex.split(hook["entry"]), *used["args"]]))
        else:
            commands += [line for line in scripts(snippet) if line.startswith("lorabench ")]
    return commands


@pytest.mark.parametrize("line", lorabench_commands())
def test_the_commands_of_the_snippets_are_commands(line: str) -> None:
    words = shlex.split(re.split(r" \|\| | >>? ", line)[0])
    command = lorabench.get_command(click.Context(lorabench), words[1])
    assert words[1] in COMMANDS
    assert command is not None
    command.make_context(words[1], words[2:])


def test_snippets_use_estimate_run_and_check() -> None:
    assert {line.split()[1] for line in lorabench_commands()} == {"estimate", "run", "check"}


def test_the_project_s_own_workflow_does_what_ci_run_does() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert "bash .ci/run" in scripts(workflow)
