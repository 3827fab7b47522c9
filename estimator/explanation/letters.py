"""Letters for a model's sizes, as in papers."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from lorabench.estimator.closed_form.sizes import (
    CHUNK,
    INDICES,
    PARTS,
    POSITION_INDICES,
    POSITION_PARTS,
    B,
    Monomial,
    R,
    S,
    Values,
)
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.resolved import ResolvedRecipe

MAX_FACTOR = 8
"""Multiples of a named width are recognised up to this factor."""


class Letter(Struct, frozen=True):
    """One letter of the formulas."""

    name: str
    meaning: str
    value: int


def letters(resolved: ResolvedRecipe) -> tuple[Letter, ...]:
    """Return the letters in the formulas of the recipe."""
    spec, recipe = resolved.spec, resolved.recipe
    heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
    values = Values(resolved)

    def of_step(monomial: Monomial, more: str = "") -> Letter:
        [symbol] = monomial.symbols
        return Letter(symbol.name, symbol.meaning + more, values[monomial])

    named = [
        of_step(B),
        of_step(S),
        Letter("L", "layers", spec.num_hidden_layers),
        Letter("h", "hidden size", spec.hidden_size),
        Letter("f", "feed-forward size", spec.intermediate_size),
        Letter("H", "attention heads", heads),
        Letter("d", "size of a head", spec.head_dim),
        Letter("qd", "queries of all heads, H·d", heads * spec.head_dim),
        Letter("kv", f"keys of all {kv_heads:,} key-value heads; also values", kv_heads * spec.head_dim),
        Letter("V", "vocabulary", spec.vocab_size),
    ]
    if spec.config.get("moe_intermediate_size"):
        named.append(Letter("m", "feed-forward size of an expert", spec.config["moe_intermediate_size"]))
    experts = spec.config.get("num_local_experts") or spec.config.get("num_experts")
    if experts:
        named.append(Letter("E", "experts", experts))
    trains_whole = recipe.adapter is None or recipe.modules_to_save
    if recipe.fused_loss is not None:
        named.append(of_step(CHUNK, f": {recipe.fused_loss.rule}"))
    if trains_whole and values[PARTS]:
        named += [of_step(INDICES), of_step(PARTS)]
    if trains_whole and spec.learned_positions and values[POSITION_PARTS]:
        named += [of_step(POSITION_INDICES), of_step(POSITION_PARTS)]
    if recipe.rank is not None:
        named.append(of_step(R))
    return tuple(named)


class Widths:
    """Finds the letter for a width. If two letters have the same value, the first of h, f, m, qd, kv, V is used."""

    def __init__(self, spec: ModelSpec) -> None:
        heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        named = {
            "h": spec.hidden_size,
            "f": spec.intermediate_size,
            "m": spec.config.get("moe_intermediate_size") or 0,
            "qd": heads * spec.head_dim,
            "kv": kv_heads * spec.head_dim,
            "V": spec.vocab_size,
        }
        experts = spec.config.get("num_local_experts") or spec.config.get("num_experts") or 0
        self._names: dict[int, str] = {}
        for name, value in named.items():
            self._names.setdefault(value, name)
        self._few = {spec.head_dim: "d", heads: "H"}
        """Used only for equal widths: many widths are multiples of a small number by chance."""
        for first, second in self._pairs():
            self._names.setdefault(first[1] * second[1], f"{first[0]}·{second[0]}")
            self._names.setdefault(experts * first[1] * second[1], f"E·{first[0]}·{second[0]}")
            self._names.setdefault(2 * experts * first[1] * second[1], f"2·E·{first[0]}·{second[0]}")
        self._names.setdefault((heads + 2 * kv_heads) * spec.head_dim, "(qd + 2·kv)")

    def _pairs(self) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
        wide = [(name, value) for value, name in self._names.items()]
        yield from ((first, second) for first in wide for second in wide)

    def name(self, width: int) -> str:
        """Return ``width`` in letters; as a number if it is neither a small multiple nor half of a named width."""
        for factor in range(1, MAX_FACTOR + 1):
            name = self._names.get(width // factor) if width % factor == 0 else None
            if name is not None:
                return name if factor == 1 else f"{factor}·{name}"
        if width in self._few:
            return self._few[width]
        halved = self._names.get(2 * width)
        return f"{width:,}" if halved is None else f"{halved}/2"
