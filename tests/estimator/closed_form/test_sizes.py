"""Products of symbols, and what they come to."""

from __future__ import annotations

import numpy as np

from lorabench.estimator.closed_form import sizes
from lorabench.estimator.closed_form.autograd import Tape
from lorabench.estimator.closed_form.ledger import Ledger
from lorabench.estimator.closed_form.sizes import ONE, PAIRS, SHIFTED_TOKENS, TOKENS, B, R, S, Values
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import small_model

SPEC = small_model("llama")


def test_products_are_written_in_one_order_and_equal_ones_are_the_same() -> None:
    assert [str(each) for each in (ONE, S * B, PAIRS, R * TOKENS, SHIFTED_TOKENS)] == [
        "1",
        "B·S",
        "B·S·S",
        "B·S·r",
        "B·(S − 1)",
    ]
    assert S * B * S is PAIRS
    assert TOKENS * ONE is TOKENS
    assert sorted([R * TOKENS, PAIRS, ONE, S]) == [ONE, S, PAIRS, R * TOKENS]


def test_values_are_the_recipe_s_or_those_that_are_given() -> None:
    recipe = make_recipe(SPEC.name, batch_size=3, seq_len=10, rank=4)
    values = Values(ResolvedRecipe(SPEC, recipe))
    assert [values[each] for each in (ONE, TOKENS, PAIRS, TOKENS * R, SHIFTED_TOKENS)] == [1, 30, 300, 120, 27]
    lengths = Values(ResolvedRecipe(SPEC, recipe), {S: np.array([2.0, 5.0])})
    assert lengths[PAIRS].tolist() == [12, 75]
    assert Values(ResolvedRecipe(SPEC, make_recipe(SPEC.name, method="full")))[R] == 0


def test_a_symbol_of_its_own_is_all_that_a_method_s_tensors_take() -> None:
    """As prefix tuning would: keys of v virtual tokens, which all sequences have."""
    prefix = sizes._symbol("v", "virtual tokens of the prefix", lambda values: 20)
    ledger = Ledger()
    ledger.enter("forward")
    keys = Tape(ledger).new(B * prefix, 64, "float32", "adapters")
    ledger.mark()
    [*_, candidate] = ledger.candidates
    values = Values(ResolvedRecipe(SPEC, make_recipe(SPEC.name, batch_size=3)))
    assert candidate.component_bytes(values)["adapters"] == 3 * 20 * 64 * 4
    assert keys.tokens.name == "B·v"
