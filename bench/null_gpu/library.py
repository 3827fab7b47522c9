"""Build the null GPU from this package's C++ and the headers of the installed CUDA, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lorabench.bench.null_gpu.elf import Elf
from lorabench.bench.null_gpu.functions import c_source
from lorabench.bench.null_gpu.installed import InstalledCuda, find_installed_cuda
from lorabench.estimator.errors import UserError

SOURCES = Path(__file__).parent / "cpp"
NAME = "libcuda.so.1"
"""Programs that open the driver by this name get the preloaded library."""
OTHER_NAMES = ("libcuda.so", "libnvidia-ml.so.1")
"""The driver's name for a linker, and NVML's."""
CANNOT_PRELOAD = " :;\n"
"""Separators in LD_PRELOAD and LD_LIBRARY_PATH, which the loader cannot quote (ld.so(8))."""


def null_gpu_library() -> Path:
    """Return the null GPU's shared library, and build it for the installed CUDA first if needed.

    A build takes seconds, and stays in ``$XDG_CACHE_HOME/lorabench/null-gpu``.

    Raises:
        UserError: this is not Linux, there is no C++ compiler or CUDA build of torch, or the cache cannot be written.
    """
    require_linux()
    cuda = find_installed_cuda()
    compiler = find_compiler()
    sources = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    key = hashlib.sha256("\n".join([cuda.identity(), compiler, platform.machine()]).encode())
    for path in [*sources, Path(__file__), Path(__file__).parent / "functions.py"]:
        key.update(path.read_bytes())
    folder = find_cache() / key.hexdigest()[:16]
    if not (folder / NAME).is_file():
        _build(cuda, compiler, folder)
    return folder / NAME


def require_linux() -> None:
    """Refuse other systems.

    Raises:
        UserError: this is not Linux.
    """
    if sys.platform != "linux":
        raise UserError(
            f"the null GPU needs Linux, and this is {platform.system()}: use a container or a virtual machine"
        )


def find_cache() -> Path:
    """Return the folder for built libraries, which may not exist yet.

    Raises:
        UserError: there is no home folder, or the loader cannot preload a library from the path.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise UserError("the null GPU is built into a cache, and there is no home folder: set XDG_CACHE_HOME") from None
    folder = base.absolute() / "lorabench" / "null-gpu"
    if set(str(folder)) & set(CANNOT_PRELOAD):
        raise UserError(
            f"the null GPU cannot be loaded from {folder}: set XDG_CACHE_HOME to a path without spaces and colons"
        )
    return folder


def find_compiler() -> str:
    """Return the path of the C++ compiler: ``$CXX``, or the first of the usual ones.

    Raises:
        UserError: there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise UserError(
        "the null GPU needs a C++ compiler: install g++ (apt-get install g++, dnf install gcc-c++), or set CXX"
    )


def _build(cuda: InstalledCuda, compiler: str, folder: Path) -> None:
    """Compile in a scratch folder, then rename it to ``folder``, so that no process finds half a library."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"the null GPU cannot be built: {error}") from None
    try:
        objects = _compile(cuda, compiler, scratch)
        link = [compiler, "-shared", f"-Wl,-soname,{NAME}", f"-Wl,--version-script={SOURCES / 'exports.map'}"]
        link += [*_static_runtime(compiler), *objects, "-ldl", "-pthread", "-o", str(scratch / NAME)]
        _run(link)
        for path in objects:
            Path(path).unlink()
        for other in OTHER_NAMES:
            (scratch / other).symlink_to(NAME)
        with suppress(OSError):  # another process was faster
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _compile(cuda: InstalledCuda, compiler: str, scratch: Path) -> list[str]:
    """Compile all sources in parallel into ``scratch``, and return the object files."""
    wanted = {name for path in cuda.libraries for name in Elf(path, offers=True).offered}
    wanted |= {name for path in cuda.callers for name in Elf(path).asked}
    functions = scratch / "functions.c"
    functions.write_text(c_source(wanted))
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w"]
    for path in cuda.headers:
        flags += ["-isystem", str(path)]
    flags += ["-idirafter", str(SOURCES / "fallback_headers")]
    flags += [f"-DNULL_GPU_{name}_VERSION={number}" for name, number in cuda.versions().items()]
    commands = {scratch / "functions.o": ["-x", "c", "-fPIC", "-w", "-c", str(functions)]}
    for source in sorted(SOURCES.glob("*.cpp")):
        commands[scratch / f"{source.stem}.o"] = [*flags, "-c", str(source)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(_run, ([compiler, *what, "-o", str(made)] for made, what in commands.items())):
            pass
    return list(map(str, commands))


def _static_runtime(compiler: str) -> list[str]:
    """Return the flags that link the C++ runtime statically, if possible, since programs may load an older one."""
    query = [compiler, "-print-file-name=libstdc++.a"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    hidden = "-Wl,--exclude-libs,ALL"  # from programs, which have their own
    return ["-static-libstdc++", "-static-libgcc", hidden] if Path(answer).is_absolute() else []


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise UserError(f"the null GPU cannot be built: {Path(command[0]).name} says {first}")
