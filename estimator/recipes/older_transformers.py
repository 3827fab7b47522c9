"""What older series of transformers do otherwise in a training step, as read in their code: 4.45.2, 4.48.3, 4.57.6."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

OlderTransformers = Literal["4.45", "4.48", "4.57"]
"""Series that the estimate knows beside transformers 5."""
OLDER: tuple[str, ...] = get_args(OlderTransformers)


class Rules(NamedTuple):
    """How a series of transformers differs from transformers 5, whose rules are the defaults."""

    model_types: frozenset[str] = frozenset()
    """Those whose estimates were compared with rehearsals; of transformers 5 all were, and are not listed."""
    loss: Literal["standard", "legacy", "rebound"] = "standard"
    """Its own loss: legacy shifts the logits, which copies them; rebound also drops the 16-bit logits before that."""
    repeats_keys: bool = False
    """Whether keys and values are repeated for all heads before sdpa, even without a mask."""
    contiguous: bool = False
    """Whether queries, keys and values are copied to the layout (B, H, S, d) before sdpa."""
    masks: bool = False
    """Whether sdpa gets a mask if the batch has none: the search for packed sequences never says that it found none."""


COMPARED = frozenset({"llama", "mistral", "mixtral", "qwen2"})
RULES: dict[str | None, Rules] = {
    None: Rules(),
    "4.45": Rules(COMPARED - {"mistral", "mixtral"}, loss="rebound", repeats_keys=True),
    "4.48": Rules(COMPARED, loss="legacy", repeats_keys=True, contiguous=True),
    "4.57": Rules(COMPARED, masks=True),
}
"""By series; None is transformers 5. In 4.45, Mistral and Mixtral make rotary tables in each layer."""
