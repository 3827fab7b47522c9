from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy", "pandas", "scipy", "jinja2"}

PROGRAM = """
import atexit, sys
atexit.register(lambda: print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr))
from lorabench.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["estimate", "meta-llama/Llama-3.1-8B", "--method", "qlora", "--gpu", "24GB"],
        ["estimate", "gpt2", "--seq-len", "1024", "--format", "json"],
        ["models"],
        ["gpus"],
        ["--help"],
        ["run", "--help"],
        ["report", "--help"],
        ["check", "--help"],
        ["doctor", "--help"],
        ["calibrate", "--help"],
        ["plan", "llama-3.1-8b", "--gpu", "rtx-3060"],
        ["estimate", "llama-3.1-8b", "--gpu", "h100-sxm", "--tokens", "50M", "--price-per-hour", "2.5"],
    ],
    ids=" ".join,
)
def test_commands_that_compute_little_import_little(arguments: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert HEAVY & set(ran.stderr.split()) == set()


def test_the_python_api_imports_little() -> None:
    program = "import lorabench, sys; lorabench.estimate('smollm2-135m'); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY & {name.partition(".")[0] for name in ran.stdout.split()} == set()
