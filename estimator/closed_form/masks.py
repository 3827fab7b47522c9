"""Attention masks. transformers makes them once for the whole model, and layers share them.

transformers allocates a mask for eager attention, and for sdpa if the batch is padded or the sequence is at least as
long as the sliding window (`masking_utils`). In other cases the kernel applies the causal mask itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.layout import Unsupported
from lorabench.estimator.closed_form.operators import Operators
from lorabench.estimator.closed_form.sizes import PAIRS, TOKENS, Monomial, S
from lorabench.estimator.models.spec import Layers, ModelSpec
from lorabench.estimator.recipes.resolved import ResolvedRecipe


class Masks:
    """The masks of one forward pass: for layers with a sliding window, and for those without."""

    def __init__(self, op: Operators, resolved: ResolvedRecipe, dtype: str, *, always: bool = False) -> None:
        """Make the masks. ``always``: the architecture makes one for sdpa too, where its kernel would need none."""
        spec, recipe = resolved.spec, resolved.recipe
        window = spec.config.get("sliding_window") or 0
        self.windowed = layers_with_window(spec)
        self._masks: dict[bool, Tensor | None] = {}
        # Checkpoints keep the mask alive, since it is an input of their layers.
        component = "activations" if recipe.gradient_checkpointing else "temporaries"
        with op.tape.scope("attention mask"):
            for kind in sorted(set(self.windowed)):
                self._masks[kind] = None
                if recipe.attn_implementation == "eager":
                    allowed = _allowed(op, "temporaries", windowed=kind, padded=recipe.padding)
                    self._masks[kind] = op.tape.new(PAIRS, 1, dtype, component)
                    del allowed
                elif recipe.attn_implementation == "sdpa" and (
                    always or recipe.padding or (kind and recipe.seq_len >= window)
                ):
                    self._masks[kind] = _allowed(op, component, windowed=kind, padded=recipe.padding)
                elif recipe.attn_implementation == "sdpa" and recipe.rules.masks:
                    self._masks[kind] = op.tape.new(PAIRS, 1, "bool", component)
        self.differ = any(self._masks.values()) and len(self._masks) > 1

    def taken(self) -> Tensor:
        """Return the mask of layers without a window, which an architecture makes a mask of its own of.

        Raises:
            Unsupported: there is none.
        """
        mask = self._masks.get(False)
        if mask is None:
            raise Unsupported("a mask of its own, made of one with a window")
        self._masks[False] = None
        return mask

    def tensors(self) -> list[Tensor]:
        """Return the masks that exist."""
        return [mask for mask in self._masks.values() if mask is not None]

    def mask(self, windowed: bool) -> Tensor | None:
        """Return the mask of layers with a window, or of layers without one; None if the kernel needs none.

        Shapes: (B·S·S, 1) for eager attention and for padded batches; else (S·S, 1) for sdpa.
        """
        return self._masks[windowed]


def _allowed(op: Operators, component: str, *, windowed: bool, padded: bool) -> Tensor:
    """Return which positions each one sees, in bool: those before it, with a window none too far before, and none that
    is padding.

    Shapes: (S·S, 1); of a padded batch (B·S·S, 1), since its sequences differ. The conditions are joined one by one,
    to a condition that always holds (`and_masks`).
    """

    def condition(component: str = "temporaries", pairs: Monomial = S * S) -> Tensor:
        return op.tape.new(pairs, 1, "bool", component)

    # The attention mask, which is int64, as the conditions need it.
    seen = op.tape.new(TOKENS, 1, "bool", "temporaries") if padded else None
    of_all = "temporaries" if padded else component
    if windowed:
        near = condition()
        joined = condition()
        del near
        before = condition()
        allowed = condition(of_all)
        del before, joined
    else:
        allowed = condition(of_all)
    if seen is None:
        return allowed
    joined = condition()
    del allowed
    of_keys = op.tape.new(TOKENS, 1, "bool", "temporaries")
    together = condition(component, PAIRS)
    del joined, of_keys, seen
    return together


def layers_with_window(spec: ModelSpec) -> list[bool]:
    """Return for each layer whether its attention has the model's sliding window."""
    config = spec.config
    if spec.layers[0].kind is not None:
        return [group.windowed for group in spec.layers for _ in range(group.count)]
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    return [config.get("sliding_window") is not None] * spec.num_hidden_layers


def identical_layers(spec: ModelSpec, masks: Masks) -> Iterator[tuple[Layers, int, bool]]:
    """Yield the layers to run, the number of layers that each stands for, and whether it has a window.

    The first layer runs alone, since its input is the embedding. If layers with and without a window alternate and
    their masks differ, all layers of one kind run before those of the other; the sum of their memory is the same.
    """
    start = 0
    for group in spec.layers:
        windowed = masks.windowed[start : start + group.count]
        if start == 0:
            yield group, 1, windowed[0]
            windowed = windowed[1:]
        kinds = sorted(set(windowed)) if masks.differ else windowed[:1]
        for kind in kinds:
            copies = windowed.count(kind) if masks.differ else len(windowed)
            if copies:
                yield group, copies, kind
        start += group.count


def every_layer(spec: ModelSpec, masks: Masks) -> Iterator[tuple[Layers, int, bool]]:
    """Yield each layer by itself, in the order of the model, as `identical_layers` yields its layers."""
    windowed = iter(masks.windowed)
    for group in spec.layers:
        for _ in range(group.count):
            yield group, 1, next(windowed)
