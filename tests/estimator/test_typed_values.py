from __future__ import annotations

from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from lorabench.estimator.errors import UserError
from lorabench.estimator.typed_values import convert


class Wheel(Struct, forbid_unknown_fields=True):
    spokes: Annotated[int, Meta(ge=1)]
    tyre: Literal["wide", "thin"] = "thin"

    def __post_init__(self) -> None:
        if self.spokes == 13:
            raise ValueError("13 spokes bring bad luck")


class Cart(Struct, rename={"colour": "paint"}):
    wheels: list[Wheel] | None = None
    prices: dict[str, Annotated[float, Meta(gt=0)]] = {}
    sizes: tuple[int, str] = (1, "m")
    colour: str | None = None
    sold: bool = False


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"wheels": [{"spokes": 8}, {"spokes": 0}]}, "wheels[1].spokes must be a whole number of at least 1, got 0"),
        ({"wheels": [{"spokes": 8, "tyre": "wet"}]}, "wheels[0].tyre must be one of thin, wide, got 'wet'"),
        ({"wheels": [{"spokes": 13}]}, "wheels[0]: 13 spokes bring bad luck"),
        ({"wheels": [{}]}, "spokes is missing in wheels[0]"),
        ({"wheels": [{"spokes": 8, "tire": "wide"}]}, "unknown key 'tire' in wheels[0]: did you mean tyre?"),
        ({"wheels": 3}, "wheels must be a list, got 3"),
        ({"prices": {"new": 1.5, "old": -1}}, "prices.old must be a number above 0, got -1"),
        ({"prices": [1]}, "prices must be a mapping, got [1]"),
        ({"sizes": [1, 2]}, "sizes[1] must be text, got 2"),
        ({"paint": 3}, "paint must be text, got 3"),
        ({"sold": "yes"}, "sold must be true or false, got 'yes'"),
        (
            {"paint": ["x" * 1000]},
            f"paint must be text, got ['{'x' * 37}...{'x' * 35}...",
        ),
        (3, "the cart must be a mapping, got 3"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_words(value: object, said: str) -> None:
    with pytest.raises(UserError) as refused:
        convert(value, Cart, "" if isinstance(value, dict) else "the cart")
    assert str(refused.value) == said


def test_a_value_of_the_right_type_comes_back_as_that() -> None:
    assert convert({"wheels": [{"spokes": 8}]}, Cart) == Cart(wheels=[Wheel(8)])
