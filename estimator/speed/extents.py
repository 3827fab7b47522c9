"""The extents of an operation filled in: what their monomials come to for one batch size, length and rank."""

from __future__ import annotations

from typing import Any, NamedTuple

from lorabench.estimator.closed_form.masks import layers_with_window
from lorabench.estimator.closed_form.sizes import B, Extent, Monomial, R, S, Values
from lorabench.estimator.closed_form.work import AttentionWork
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.arithmetic import larger


class Filled(NamedTuple):
    """The value of each monomial: numbers, or arrays of them for a grid of recipes."""

    values: Values
    seen_pairs: Any
    """Pairs of a token and one that it sees, itself included, in one sequence: the mean over the layers."""
    causal_pairs: Any
    """The same without a sliding window."""
    windowed_kernels: bool
    """Whether the kernels that skip what is masked skip what lies before the window too."""

    def __call__(self, extent: Extent) -> Any:
        """Return the number that ``extent`` comes to."""
        count, monomial = extent
        return count * self.values[monomial]

    def sum(self, sizes: tuple[tuple[Monomial, float], ...]) -> Any:
        """Return the total of monomials, each so many times."""
        return sum(size * self.values[monomial] for monomial, size in sizes)

    def kernel_pairs(self, attention: AttentionWork) -> Any:
        """Return the pairs of positions that the kernel works on, in one sequence."""
        if not attention.skips_masked:
            return self.values[S * S]
        return self.seen_pairs if self.windowed_kernels else self.causal_pairs


def fill(resolved: ResolvedRecipe, batch_size: Any, seq_len: Any, rank: Any) -> Filled:
    """Return the extents of the recipe for these sizes, which may be arrays.

    A kernel that is given no mask skips what is masked: of ``sdpa`` what comes after a token, of
    ``flash_attention_2`` what lies before the window too. (``sdpa`` is given a mask where a window is filled.)
    """
    spec = resolved.spec
    causal = seq_len * (seq_len + 1) / 2
    windowed = layers_with_window(spec)
    window = spec.config.get("sliding_window")
    seen = causal
    if window and any(windowed):
        # A token past the window sees ``window`` tokens: those beyond it are what all later tokens do not see.
        beyond = larger(0, seq_len - window)
        share = sum(windowed) / len(windowed)
        seen = causal - share * beyond * (beyond + 1) / 2
    return Filled(
        values=Values(resolved, {B: batch_size, S: seq_len, R: rank}),
        seen_pairs=seen,
        causal_pairs=causal,
        windowed_kernels=resolved.recipe.attn_implementation == "flash_attention_2",
    )


def fill_recipe(resolved: ResolvedRecipe) -> Filled:
    """Return the extents for the recipe's own batch size, length and rank."""
    recipe = resolved.recipe
    return fill(resolved, recipe.batch_size, recipe.seq_len, recipe.rank or 0)
