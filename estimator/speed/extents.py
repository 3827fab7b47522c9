"""The values of extents for a batch size, length and rank: numbers, or arrays of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from lorabench.estimator.closed_form.masks import layers_with_window
from lorabench.estimator.closed_form.sizes import B, Extent, Monomial, R, S, Values
from lorabench.estimator.closed_form.work import AttentionWork
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.arithmetic import larger


class Filled(NamedTuple):
    """The values of monomials and of pairs of positions: numbers, or arrays for a grid of recipes."""

    values: Values
    seen_pairs: Any
    """Pairs of a token and a token that it attends to, itself included, in one sequence; the mean over the layers."""
    causal_pairs: Any
    """The same without a sliding window."""
    windowed_kernels: bool
    """Whether kernels that skip masked pairs also skip pairs outside the sliding window."""

    def __call__(self, extent: Extent) -> Any:
        """Return the value of ``extent``."""
        count, monomial = extent
        return count * self.values[monomial]

    def sum(self, sizes: tuple[tuple[Monomial, float], ...]) -> Any:
        """Return the sum of monomials, each times its coefficient."""
        return sum(size * self.values[monomial] for monomial, size in sizes)

    def kernel_pairs(self, attention: AttentionWork) -> Any:
        """Return the number of pairs of positions that the kernel computes in one sequence."""
        if not attention.skips_masked:
            return self.values[S * S]
        return self.seen_pairs if self.windowed_kernels else self.causal_pairs


def fill(resolved: ResolvedRecipe, batch_size: Any, seq_len: Any, rank: Any) -> Filled:
    """Return the values for the recipe with these sizes, numbers or arrays.

    A kernel without a mask skips masked pairs: ``sdpa`` skips tokens after each token, ``flash_attention_2`` also skips
    tokens before the window. (``sdpa`` gets a mask if the sequence fills the window.)
    """
    spec = resolved.spec
    causal = seq_len * (seq_len + 1) / 2
    windowed = layers_with_window(spec)
    window = spec.config.get("sliding_window")
    seen = causal
    if window and any(windowed):
        # Token number window + i attends to ``window`` tokens, and misses i: 1 + 2 + … + beyond in total.
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
    """Return the values for the recipe's own batch size, length and rank."""
    recipe = resolved.recipe
    return fill(resolved, recipe.batch_size, recipe.seq_len, recipe.rank or 0)
