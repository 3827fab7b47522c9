"""Python processes with code planted in them, which changes a module as soon as it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Program = Callable[..., "subprocess.CompletedProcess[str]"]

FINDER = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    asks = False

    def find_spec(self, name, path=None, target=None):
        if name != MODULE or self.asks:
            return None
        self.asks = True
        spec = importlib.util.find_spec(name)
        self.asks = False
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            imported(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def planted(folder: Path, module: str, code: str) -> Program:
    """Return a function that runs Python with arguments, where ``code`` is planted, and returns how it ended.

    The code defines a function ``imported``, which is called with ``module`` each time that it was imported, also in
    processes that the program starts. ``folder``, which holds the code, is on Python's path.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"MODULE = {module!r}\n{code}\n{FINDER}")
    environment = {**os.environ, "PYTHONPATH": str(folder)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run
