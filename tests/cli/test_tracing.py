"""What a trace says while it runs: on a terminal, once it takes long."""

from __future__ import annotations

import io
import sys
import time

import pytest

from lorabench.cli import tracing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_takes_long_is_shown_while_it_runs_and_cleared_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(tracing, "PATIENCE_SECONDS", 0.5)
    with tracing.progress() as say:
        say("importing")
        assert terminal.getvalue() == ""
        waited_until = time.monotonic() + 60
        while "importing" not in terminal.getvalue() and time.monotonic() < waited_until:
            time.sleep(0.01)
        say("building")
    assert "s: importing" in terminal.getvalue()
    assert "s: building" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")


def test_what_is_quick_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(tracing, "PATIENCE_SECONDS", 60)
    with tracing.progress() as say:
        say("importing")
    assert terminal.getvalue() == ""


def test_a_pipe_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(tracing, "PATIENCE_SECONDS", 0)
    with tracing.progress() as say:
        say("importing")
        say("building")
    assert written.getvalue() == ""
