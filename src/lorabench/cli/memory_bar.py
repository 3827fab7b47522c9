"""The bar of an estimate: what a step holds, as parts of the card's memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lorabench.cli.listing import WIDTH, folded
from lorabench.estimator.quantities import GIB

if TYPE_CHECKING:
    from lorabench.estimator.memory.breakdown import Breakdown


LEAST_SHOWN = GIB / 200
"""Parts of fewer bytes would be 0.00 GiB."""
NO_BREAK = "\N{NO-BREAK SPACE}"


class Part(NamedTuple):
    """One part of the bar."""

    name: str
    mark: str
    """The character that it is drawn with, so that it can be told without colours."""
    color: str
    """A colour that people with any colour vision tell from the others (Okabe and Ito 2008)."""
    bytes: float


KINDS = (
    ("weights", "w", "#0072B2", ("weights", "quantized_weights")),
    ("adapters", "d", "#882255", ("adapters",)),
    ("gradients, states", "g", "#E69F00", ("gradients", "optimizer_states")),
    ("activations", "a", "#009E73", ("activations", "temporaries", "buffers", "workspaces", "rounding")),
    ("logits", "l", "#CC79A7", ("logits",)),
)
"""Name, mark, colour and components of the parts that torch allocates."""


def parts_of(memory: Breakdown, usable_bytes: int | None) -> list[Part]:
    """Return the parts of the device's memory at the peak, as far as they take any that shows.

    After what torch allocates come the allocator's cache, the CUDA context and, if the usable memory is known, what is
    free.
    """
    parts = [
        Part(name, mark, color, sum(memory.components.get(component, 0) for component in components))
        for name, mark, color, components in KINDS
    ]
    reserved, total = memory.peak_reserved_bytes, memory.device_total_bytes
    if reserved is not None:
        parts.append(Part("cached", "c", "#56B4E9", reserved - memory.peak_allocated_bytes))
        if total is not None:
            parts.append(Part("CUDA context", "x", "#D55E00", total - reserved))
            if usable_bytes is not None:
                parts.append(Part("free", ".", "", usable_bytes - total))
    return [part for part in parts if part.bytes >= LEAST_SHOWN]


def bar(parts: Sequence[Part], usable_bytes: int | None, paint: Callable[[str, str], str]) -> list[str]:
    """Return the bar, whose full width is the usable memory, or all parts if they are more; then its legend.

    ``paint`` gives a text a colour.
    """
    room = WIDTH - 2
    held = [part for part in parts if part.name != "free"]
    full = max(sum(part.bytes for part in held), usable_bytes or 0)
    card_ends = None if usable_bytes is None or full <= usable_bytes else int(room * usable_bytes / full)
    drawn, filled, done = "", 0, 0.0
    for part in held:
        done += part.bytes
        end = round(room * done / full)
        marks = [part.mark] * (end - filled)
        if card_ends is not None and filled <= card_ends < end:
            marks[card_ends - filled] = "|"
        drawn += paint("".join(marks), part.color)
        filled = end
    drawn += "." * (room - filled)
    if card_ends is not None:
        parts = [*parts, Part("end of the card", "|", "", usable_bytes or 0)]
    # The words of a part stay on one line.
    legend = "  ".join(f"{part.mark} {part.name} {part.bytes / GIB:.2f}".replace(" ", NO_BREAK) for part in parts)
    lines = folded(f"{legend}{NO_BREAK}GiB", indent=" ", hanging=" ")
    return [f"[{drawn}]", *(line.replace(NO_BREAK, " ") for line in lines)]


def painter(*, terminal: bool) -> Callable[[str, str], str]:
    """Return the ``paint`` of `bar`: colours on a terminal, unless the variable NO_COLOR is set."""
    if not terminal or os.environ.get("NO_COLOR"):
        return lambda text, color: text
    from rich.color import Color, ColorSystem
    from rich.style import Style

    def paint(text: str, color: str) -> str:
        return Style(color="#000000", bgcolor=Color.parse(color)).render(text, color_system=ColorSystem.EIGHT_BIT)

    return paint
