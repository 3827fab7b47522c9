"""The observer inside a rehearsed program leaves its memory as it is."""

from __future__ import annotations

import sys
import weakref

from lorabench.bench.rehearsing.observer import _first_argument


class Batch:
    """Stands for the tensors of one step."""


def test_whoever_looks_for_the_trainer_keeps_no_variable_of_its_loop_alive() -> None:
    def loop(trainer: str) -> tuple[object, Batch | None]:
        batch: Batch | None = Batch()
        kept = weakref.ref(batch)
        found = _first_argument(sys._getframe())
        batch = None
        return found, kept()

    assert loop("the trainer") == ("the trainer", None)
