"""Sizes as integer multiples of products of symbols: 4096 · B·S.

If a method adds a size, such as the length of a prefix, it declares a symbol here and uses it in its tensors.
`Values` has the symbols' values for one recipe, or for arrays of batch sizes, lengths and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, NamedTuple

from lorabench.estimator.memory.embedding_backward import embedding_scratch
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class Symbol(NamedTuple):
    """A symbol: a number that is open until a recipe is given."""

    order: int
    """Order of the symbols in a product."""
    name: str
    meaning: str
    value: Callable[[Values], Any]
    """Computes its value, a number or an array of float64, from spec, recipe and other symbols' values."""


class Monomial:
    """A product of symbols, such as B·S·S. Equal products are the same object, and are compared by identity."""

    __slots__ = ("_order", "_products", "name", "symbols")

    def __init__(self, symbols: tuple[Symbol, ...]) -> None:
        self.symbols = symbols
        self.name = "·".join(symbol.name for symbol in symbols) or "1"
        orders = [symbol.order for symbol in symbols]
        self._order = max(orders, default=-1), len(orders), orders
        self._products: dict[Monomial, Monomial] = {}

    def __lt__(self, other: Monomial) -> bool:
        return self._order < other._order

    def __mul__(self, other: Monomial) -> Monomial:
        product = self._products.get(other)
        if product is None:
            symbols = sorted((*self.symbols, *other.symbols), key=lambda symbol: symbol.order)
            product = self._products[other] = _product(*symbols)
        return product

    def __repr__(self) -> str:
        return self.name

    def value(self, values: Values) -> Any:
        """Return its value, computed from left to right: (B · S) · S."""
        *first, last = self.symbols
        return values[_product(*first)] * values[_product(last)] if first else last.value(values)


_PRODUCTS: dict[tuple[Symbol, ...], Monomial] = {}


def _product(*symbols: Symbol) -> Monomial:
    if symbols not in _PRODUCTS:
        _PRODUCTS[symbols] = Monomial(symbols)
    return _PRODUCTS[symbols]


class Values:
    """The values of the monomials, each computed when first needed."""

    def __init__(self, resolved: ResolvedRecipe, given: Mapping[Monomial, Any] | None = None) -> None:
        """Use ``given`` values of symbols (numbers, or arrays of float64) instead of the recipe's own."""
        self.spec = resolved.spec
        self.recipe = resolved.recipe
        self._known: dict[Monomial, Any] = {ONE: 1, **(given or {})}

    def __getitem__(self, monomial: Monomial) -> Any:
        value = self._known.get(monomial)
        if value is None:
            value = self._known[monomial] = monomial.value(self)
        return value


_orders = count()


def _symbol(name: str, meaning: str, value: Callable[[Values], Any]) -> Monomial:
    return _product(Symbol(next(_orders), name, meaning, value))


def _rows(values: Values, *, last: bool) -> Any:
    """Return the tokens in a chunk of the recipe's fused loss, or in the last one."""
    loss = values.recipe.fused_loss
    assert loss is not None
    rows = loss.last_chunk_rows if last else loss.chunk_rows
    return rows(loss.divided(values[B], values[S]), values.spec.vocab_size, values.spec.hidden_size)


ONE = _product()
B = _symbol("B", "sequences in a batch", lambda values: values.recipe.batch_size)
S = _symbol("S", "tokens in a sequence", lambda values: values.recipe.seq_len)
TOKENS = B * S
PAIRS = B * S * S
"""Pairs of positions of each sequence: the scores of one attention head."""
R = _symbol("r", "rank of the adapters", lambda values: values.recipe.rank or 0)
PADDED_TOKENS = B * _symbol(
    "⌈S⌉128", "S rounded up to a multiple of 128, as flash attention pads it", lambda values: -(-values[S] // 128) * 128
)
ATTENTION_BLOCKS = {
    64: B * _symbol("⌈S/64⌉", "blocks of 64 tokens in a sequence", lambda values: -(-values[S] // 64)),
    128: B * _symbol("⌈S/128⌉", "blocks of 128 tokens in a sequence", lambda values: -(-values[S] // 128)),
}
"""Tokens in a block of memory-efficient attention → blocks in a batch."""
EXPERT_TOKENS = _symbol(
    "t",
    "tokens of an expert, if the router spreads them evenly: B·S times experts per token, by experts, rounded up",
    lambda values: (
        -(-(values[TOKENS] * values.spec.config["num_experts_per_tok"]) // values.spec.config["num_local_experts"])
    ),
)
CHUNK = _symbol(
    "c",
    "tokens in a chunk of the fused loss",
    lambda values: _rows(values, last=False),
)
LAST_CHUNK = _symbol(
    "c′",
    "tokens in the last chunk of the fused loss",
    lambda values: _rows(values, last=True),
)
SHIFTED_TOKENS = B * _symbol("(S − 1)", "tokens of a sequence that have a next one", lambda values: values[S] - 1)
INDICES = _symbol(
    "i",
    "indices in the embedding's backward: 3·B·S + 2·min(B·S, V) + p",
    lambda values: sum(embedding_scratch(values[TOKENS], values.spec.vocab_size)[0]),
)
PARTS = _symbol(
    "p",
    "partial sums in the embedding's backward: ⌊B·S/10⌋ + min(B·S, V)",
    lambda values: embedding_scratch(values[TOKENS], values.spec.vocab_size)[1],
)
POSITION_INDICES = _symbol(
    "i′",
    "indices in the positions' backward: 5·S + p′",
    lambda values: sum(embedding_scratch(values[S], values.spec.max_position_embeddings)[0]),
)
POSITION_PARTS = _symbol(
    "p′",
    "partial sums in the positions' backward: ⌊S/10⌋ + S",
    lambda values: embedding_scratch(values[S], values.spec.max_position_embeddings)[1],
)
POSITION_INDICES_OF_ALL = _symbol(
    "i″",
    "indices in the positions' backward, if each sequence looks them up: 5·B·S + p″",
    lambda values: sum(embedding_scratch(values[TOKENS], values.spec.max_position_embeddings)[0]),
)
POSITION_PARTS_OF_ALL = _symbol(
    "p″",
    "partial sums in the positions' backward, if each sequence looks them up: ⌊B·S/10⌋ + min(B·S, positions)",
    lambda values: embedding_scratch(values[TOKENS], values.spec.max_position_embeddings)[1],
)

_LONGER: dict[int, Monomial] = {0: S}


def longer(extra: int) -> Monomial:
    """Return the symbol of S + ``extra``: a sequence with a sink that attention may look at, or with padding."""
    if extra not in _LONGER:
        name = f"(S {'+' if extra > 0 else '−'} {abs(extra)})"
        meaning = f"tokens of a sequence, and {extra} more" if extra > 0 else f"tokens of a sequence, less {-extra}"
        _LONGER[extra] = _symbol(name, meaning, lambda values: values[S] + extra)
    return _LONGER[extra]


def extra_tokens(monomial: Monomial) -> int | None:
    """Return c if ``monomial`` is S + c, else None."""
    return next((extra for extra, known in _LONGER.items() if known is monomial), None)


_CHUNKS: dict[tuple[int, int], Monomial] = {}
_FILLING: dict[int, Monomial] = {}


def chunks_of_length(tokens: int, extra: int = 0) -> Monomial:
    """Return the symbol of ⌈S/``tokens``⌉ + ``extra``: the chunks of a scan, of so many tokens each."""
    if (tokens, extra) not in _CHUNKS:
        name, meaning = f"⌈S/{tokens}⌉", f"chunks of {tokens} tokens in a scan"
        if extra:
            name = f"({name} {'+' if extra > 0 else '−'} {abs(extra)})"
            meaning += f", and {extra} more" if extra > 0 else f", less {-extra}"
        _CHUNKS[tokens, extra] = _symbol(name, meaning, lambda values: -(-values[S] // tokens) + extra)
    return _CHUNKS[tokens, extra]


def filling(tokens: int) -> Monomial:
    """Return the symbol of the tokens that fill the last chunk of a scan, of ``tokens`` each."""
    if tokens not in _FILLING:
        _FILLING[tokens] = _symbol(
            f"(−S mod {tokens})",
            f"tokens that fill the last chunk of {tokens} in a scan",
            lambda values: -(-values[S] // tokens) * tokens - values[S],
        )
    return _FILLING[tokens]


def chunks_and_more(monomial: Monomial) -> tuple[int, int] | None:
    """Return c and k if ``monomial`` is ⌈S/c⌉ + k, else None."""
    return next((key for key, known in _CHUNKS.items() if known is monomial), None)


def filled_chunk(monomial: Monomial) -> int | None:
    """Return c if ``monomial`` is `filling` of c, else None."""
    return next((tokens for tokens, known in _FILLING.items() if known is monomial), None)


def of_symbol(symbol: Symbol) -> Monomial:
    """Return the product of one ``symbol``."""
    return _product(symbol)


Extent = tuple[float, Monomial]
"""A number times a product of symbols, such as one side of a matrix."""
