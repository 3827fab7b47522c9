"""Silence ends where it began, and takes from a program that calls lorabench only what the libraries say."""

from __future__ import annotations

import logging
import os
import warnings

import pytest

from lorabench.estimator.quiet import SPEAK, command_line, quiet_libraries


def speak() -> None:
    os.write(1, b"one\n")
    os.write(2, b"two\n")
    logging.getLogger("a library").warning("log")
    warnings.warn("warning", stacklevel=1)


def test_a_program_that_calls_lorabench_goes_on_to_print(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with quiet_libraries():
        speak()
    assert capfd.readouterr() == ("one\n", "two\n")
    assert (caplog.messages, list(recwarn)) == ([], [])
    speak()
    assert (caplog.messages, len(recwarn)) == (["log"], 1)


def test_the_command_line_turns_both_away_and_back_however_it_ends(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def fails() -> None:
        with quiet_libraries():
            with quiet_libraries():
                speak()
            speak()
            raise ZeroDivisionError

    with command_line(), pytest.raises(ZeroDivisionError):
        fails()
    assert capfd.readouterr() == ("", "")
    speak()
    assert capfd.readouterr() == ("one\n", "two\n")
    assert (caplog.messages, len(recwarn)) == (["log"], 1)


def test_who_asks_hears_all_on_standard_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SPEAK, "1")
    with command_line(), quiet_libraries(), pytest.warns(UserWarning, match="warning"):
        speak()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "one\ntwo\n")
    assert caplog.messages == ["log"]
