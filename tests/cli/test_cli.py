from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lorabench import __version__
from lorabench.cli import COMMANDS, lorabench, main
from lorabench.estimator.errors import UserError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lorabench", *arguments], capture_output=True, text=True, check=False)


def exit_of(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: lorabench ")
    assert max(map(len, out.splitlines())) <= 80
    assert [name for name in COMMANDS if f"\n  {name} " not in out] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: lorabench {name} ")
    assert max(map(len, out.splitlines())) <= 80


def test_version() -> None:
    ran = run("--version")
    assert (ran.returncode, ran.stdout) == (0, f"lorabench, version {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["estimat"], "no command 'estimat': did you mean estimate?"),
        (["zzz"], "no command 'zzz': choose from "),
        (["--versoin"], "--version"),
        (["check", "results", "--basline", "x"], "--baseline"),
        (["check"], "Missing argument 'RESULTS_DIR' (lorabench check --help lists the options)"),
        (["check", "a", "b", "--baseline", "c"], "unexpected extra argument"),
        (["estimate", "gpt2", "--method", "qlroa"], "'qlroa': did you mean qlora?"),
        (["estimate", "gpt2", "--lora-r", "8"], "no option --lora-r: write --rank (lorabench estimate --help"),
        (["run", "gpt2", "--load-in-4bit=True"], "no option --load-in-4bit: write --method qlora ("),
        (["plan", "--per_device_train_batch_size", "2"], "write --batch-size ("),
        (["estimate", "--model", "gpt2"], "write MODEL, without an option ("),
        (["estimate", "gpt2", "--lr", "1e-4"], "the learning rate is fixed: it changes neither memory nor speed ("),
        (["estimate", "gpt2", "--batchsize", "2"], "--batch-size"),
        (["calibrate", "--bf16"], "No such option"),
        (["estimate", "gpt2", "--optim", "adamw_torch_4bit"], "'adamw_torch_4bit': torchao compiles its step at "),
        (["estimate", "smollm2-135m", "--target-modules", "lm_head"], "full with --modules-to-save lm_head"),
        (["run", "smoke", "-o", ""], "'-o' / '--output': the path is empty: write one"),
        (["report", "--model", "gpt2", "-o", ""], "'-o' / '--output': the path is empty: write one"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("lorabench: ")
    assert said in err


def test_wrong_use_shows_no_traceback_from_outside() -> None:
    ran = run("check", "no-such-folder", "--baseline", "no-such-folder")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("lorabench: no-such-folder: no such folder")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("wrong\nin two lines"), 2, "lorabench: wrong in two lines\n"),
        (click.ClickException("wrong."), 2, "lorabench: wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "lorabench: cannot write: no space left"),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise raised

    monkeypatch.setattr(lorabench, "get_command", lambda _context, name: click.Command(name, callback=fails))
    assert exit_of(["check"]) == code
    assert capsys.readouterr().err.lstrip().startswith(said)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(lorabench, "get_command", lambda _context, name: click.Command(name, callback=fails))
    with pytest.raises(ZeroDivisionError):
        main(["check"])


@pytest.mark.parametrize("answer", [0, 1, 3])
def test_a_reader_that_goes_away_changes_no_exit_code(answer: int) -> None:
    program = (
        "import click, lorabench.cli as cli\n"
        f"talk = click.Command('talk', callback=lambda: click.echo('a line\\n' * 100_000) or {answer})\n"
        "cli.COMMANDS['talk'] = ''\n"
        "cli.Commands.get_command = lambda *_: talk\n"
        "cli.main(['talk'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == answer


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "lorabench", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ran.returncode == 2
    assert ran.stderr == "lorabench: cannot write: no space left on the device: free some, or write elsewhere\n"


def test_an_output_that_is_closed_is_no_fault() -> None:
    closing = f"exec '{sys.executable}' -m lorabench gpus >&-"
    ran = subprocess.run(["sh", "-c", closing], stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
