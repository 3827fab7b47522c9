"""The names of other tools, and what is said of them."""

from __future__ import annotations

import pytest

from lorabench.cli.estimate import command
from lorabench.cli.recipe_options import option_here
from lorabench.estimator.recipes.other_names import INSTEAD, NOT_HERE
from lorabench.estimator.recipes.recipe import SETTINGS, make_recipe

FLAGS = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_to_be_written_instead_is_an_option_and_a_value_of_it(name: str) -> None:
    option, _, value = INSTEAD[name].partition("=")
    assert option in SETTINGS
    if value:
        assert make_recipe("any", **{option: value}).setting(option) == value
    said = option_here(f"--{name.replace('_', '-')}", command)
    assert said is not None
    flag, *values = said.removeprefix("write ").split(maxsplit=1)
    if option == "model":
        assert said == "write MODEL, without an option"
    else:
        assert (flag in FLAGS, values) == (True, [value] if value else [])


def test_no_name_of_another_tool_is_one_of_ours() -> None:
    assert (INSTEAD.keys() | NOT_HERE.keys()) & set(SETTINGS) == {"model"}
    assert not {f"--{name.replace('_', '-')}" for name in INSTEAD.keys() | NOT_HERE.keys()} & FLAGS
