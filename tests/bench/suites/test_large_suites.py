"""Suites that would take minutes are refused where they begin, and large ones are read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabench.bench.suites.suite_file import MOST_COMPARED, load_suite
from lorabench.estimator.errors import UserError
from lorabench.estimator.plain_yaml import MOST_LEVELS, MOST_VALUES, read_plain_yaml

MATRIX = "matrix: {{model: gpt2, method: lora, rank: [{ranks}], seq_len: [{lengths}]}}\n"


def test_as_many_values_as_allowed_are_read() -> None:
    value, lines = read_plain_yaml("- a\n" * (MOST_VALUES - 1), "x.yaml")
    assert len(value) == MOST_VALUES - 1
    assert lines[(5,)] == 6
    said = rf"x\.yaml line {MOST_VALUES}: more than 20,000 keys and values: split the suite, or"
    with pytest.raises(UserError, match=said):
        read_plain_yaml("- a\n" * MOST_VALUES, "x.yaml")


@pytest.mark.parametrize("begin", ["[", "{a: ", "- ", "? "])
def test_nesting_is_refused_at_its_first_line(begin: str) -> None:
    with pytest.raises(UserError, match=r"line 1: (nested too deeply|a key must be a plain word)"):
        read_plain_yaml(begin * 100_000, "x.yaml")


def test_nesting_as_deep_as_allowed_is_read() -> None:
    value, _ = read_plain_yaml("[" * MOST_LEVELS + "]" * MOST_LEVELS, "x.yaml")
    for _ in range(MOST_LEVELS - 1):
        [value] = value
    assert value == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n---\nb: 2\n", "line 2: not YAML: a second document: write one"),
        ("a: !!python/object:os.system x\n", "line 1: a tag is not allowed here"),
        ("a: &x 1\nb: *x\n", "line 2: an alias is not allowed here"),
        ("? [a]\n: 1\n", "line 1: a key must be a plain word"),
        ("a: 1\n\n\na: 2\n", "line 4: a is given twice"),
        ('a: "\\ud800"\n', "line 1: half of a character"),
        ("a: [1, 2\n", "line 2: not YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"x\.yaml {said}"):
        read_plain_yaml(text, "x.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "--- \n...\n"])
def test_a_file_without_a_value_has_none(text: str) -> None:
    assert read_plain_yaml(text, "x.yaml")[0] is None


def test_escaped_halves_of_a_character_are_joined() -> None:
    assert read_plain_yaml('{"\\ud83d\\ude00": "\\ud83d\\ude00"}', "x.yaml")[0] == {"😀": "😀"}


@pytest.mark.parametrize("key", ["defaults_when", "exclude"])
def test_conditions_times_recipes_are_bounded(tmp_path: Path, key: str) -> None:
    path = tmp_path / "many.yaml"
    matrix = MATRIX.format(ranks=", ".join(map(str, range(1, 101))), lengths=", ".join(map(str, range(64, 164))))
    entry = "{when: {rank: 3}, use: {batch_size: 2}}" if key == "defaults_when" else "{rank: 3}"
    count = MOST_COMPARED // 10_000 + 1
    path.write_text(f"{matrix}{key}:\n" + f"  - {entry}\n" * count)
    with pytest.raises(UserError, match=r"many\.yaml line 2: 6 conditions for each of 10,000 recipes are too many"):
        load_suite(str(path))


def test_conditions_see_what_earlier_ones_decided(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(
        MATRIX.format(ranks="4, 8", lengths="64")
        + "defaults_when:\n  - {when: {rank: 8}, use: {batch_size: 2}}\n"
        + "  - {when: {batch_size: [2, 3]}, use: {gradient_accumulation: 5}}\n"
    )
    recipes = [resolved.recipe for resolved in load_suite(str(path)).recipes]
    assert [(one.batch_size, one.gradient_accumulation) for one in recipes] == [(1, 1), (2, 5)]
