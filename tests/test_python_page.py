"""The examples of docs/python.md."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import lorabench
from lorabench.cli import COMMANDS

PAGE = Path(__file__).parents[1] / "docs/python.md"


def test_the_examples_answer_what_the_page_says() -> None:
    blocks = re.findall(r"```pycon\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    runner = doctest.DocTestRunner()
    runner.run(examples)
    assert runner.summarize().failed == 0


def test_the_page_names_all_functions_and_their_arguments() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in set(lorabench.__all__) - {"UserError"}:
        (signature,) = re.findall(rf"`{name}\((.*?)\)`", page)
        parameters = inspect.signature(getattr(lorabench, name)).parameters
        for argument in re.findall(r"(?:^|, )\**(\w+)(?==|,|$)", signature):
            assert argument in parameters, f"{name}: {argument}"


def test_commands_that_answer_are_functions_of_the_same_name() -> None:
    answering = set(COMMANDS) - {"recipe", "calibrate", "models", "gpus", "doctor"}
    assert answering <= set(lorabench.__all__)
