"""The installed CUDA build of torch: its CUDA version, the NVIDIA libraries that it links, and their headers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from lorabench.bench.null_gpu.elf import Elf
from lorabench.estimator.errors import UserError

HOW_TO_GET_TORCH = "install a CUDA build from https://pytorch.org/get-started/locally (on Linux, pip install torch)"
OF_NVIDIA = re.compile(
    r"lib(cudart|cublas|cublasLt|cudnn|nccl|cusparse|cusparseLt|cusolver|cufft|curand|cufile|nvrtc|cupti|nvshmem_host"
    r"|nvJitLink)\.so"
)
"""Libraries that the null GPU replaces, besides NVIDIA's driver."""
VERSIONS = {
    "CUDART": ("cuda_runtime_api.h", r"#define\s+CUDART_VERSION\s+(\d+)"),
    "CUBLAS_MAJOR": ("cublas_api.h", r"#define\s+CUBLAS_VER_MAJOR\s+(\d+)"),
    "CUBLAS_MINOR": ("cublas_api.h", r"#define\s+CUBLAS_VER_MINOR\s+(\d+)"),
    "CUBLAS_PATCH": ("cublas_api.h", r"#define\s+CUBLAS_VER_PATCH\s+(\d+)"),
    "CUDNN_MAJOR": ("cudnn_version.h", r"#define\s+CUDNN_MAJOR\s+(\d+)"),
    "CUDNN_MINOR": ("cudnn_version.h", r"#define\s+CUDNN_MINOR\s+(\d+)"),
    "CUDNN_PATCH": ("cudnn_version.h", r"#define\s+CUDNN_PATCHLEVEL\s+(\d+)"),
    "NCCL": ("nccl.h", r"#define\s+NCCL_VERSION_CODE\s+(\d+)"),
}
"""Library → header with its version, and the pattern of the number."""


class InstalledCuda(NamedTuple):
    """The installed libraries that the null GPU replaces, and those that call them."""

    torch: Path
    """torch's package folder."""
    libraries: tuple[Path, ...]
    """NVIDIA's libraries, which are replaced."""
    callers: tuple[Path, ...]
    """torch's own libraries, which call them."""
    headers: tuple[Path, ...]
    """Folders of the headers of `libraries`."""

    def identity(self) -> str:
        """Return a text that changes with the version of any library."""
        return "\n".join(
            f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in (*self.libraries, *self.callers)
        )

    def versions(self) -> dict[str, int]:
        """Return the versions of CUDART, CUBLAS, CUDNN and NCCL, as their own headers number them.

        Raises:
            UserError: a header is missing.
        """
        found = {name: self._number(*where) for name, where in VERSIONS.items()}
        major = found["CUDNN_MAJOR"]
        return {
            "CUDART": found["CUDART"],
            "CUBLAS": 10000 * found["CUBLAS_MAJOR"] + 100 * found["CUBLAS_MINOR"] + found["CUBLAS_PATCH"],
            "CUDNN": (10000 if major >= 9 else 1000) * major + 100 * found["CUDNN_MINOR"] + found["CUDNN_PATCH"],
            "NCCL": found["NCCL"],
        }

    def _number(self, header: str, pattern: str) -> int:
        # cudnn_version.h of some packages includes cudnn_version_v9.h, which has the numbers.
        for name in (header, header.replace(".h", "_v9.h")):
            for folder in self.headers:
                path = folder / name
                found = re.search(pattern, path.read_text(errors="replace")) if path.is_file() else None
                if found:
                    return int(found[1])
        raise UserError(
            f"the null GPU needs {header}, which comes with NVIDIA's packages for torch, but is not in "
            f"{', '.join(map(str, self.headers)) or 'any folder of theirs'}: reinstall torch with its dependencies"
        )


def find_installed_cuda() -> InstalledCuda:
    """Return torch's CUDA build of this Python environment, without importing it.

    Raises:
        UserError: torch is not installed or is built without CUDA, or its NVIDIA libraries are missing.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise UserError(f"the null GPU needs a CUDA build of torch, and torch is not installed: {HOW_TO_GET_TORCH}")
    torch = Path(found.origin).parent
    if not (torch / "lib" / "libtorch_cuda.so").is_file():
        raise UserError(
            f"the null GPU needs a CUDA build of torch, and {torch} is built without CUDA: {HOW_TO_GET_TORCH}"
        )
    callers = tuple(sorted((torch / "lib").glob("*.so")))
    libraries: dict[str, Path] = {}
    for caller in callers:
        elf = Elf(caller)
        for name in elf.needed:
            if OF_NVIDIA.match(name) and name not in libraries:
                libraries[name] = _resolve(name, elf.search_path)
    headers = {path.parent.parent / "include" for path in libraries.values()}
    return InstalledCuda(
        torch=torch,
        libraries=tuple(libraries[name] for name in sorted(libraries)),
        callers=callers,
        headers=tuple(sorted(folder for folder in headers if folder.is_dir())),
    )


def _resolve(name: str, folders: list[Path]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise UserError(
        f"torch needs NVIDIA's {name}, which is in none of {', '.join(map(str, folders))}: reinstall torch with its "
        "dependencies"
    )
