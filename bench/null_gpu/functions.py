"""Generated functions of NVIDIA's libraries: those that no C++ file here defines. The name decides what one does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Body(StrEnum):
    """The body of a generated function, in C."""

    NOTHING = "int {name}(void) {{ return 0; }}"
    """It succeeds. For kernels, and for settings that only kernels use."""
    HANDLE = "int {name}(void **made) {{ *made = calloc(1, 4096); return made == 0; }}"
    """It makes an object that only the library reads."""
    LETS_GO = "int {name}(void *made) {{ free(made); return 0; }}"
    TEXT = 'const char *{name}(void) {{ return "not supported by the null GPU"; }}'
    REFUSES = 'int {name}(void) {{ return null_gpu_refuse("{name}", {status}); }}'
    """It fails and reports its name, since a program depends on its result, which is unknown here."""


class Library(NamedTuple):
    """The names of a library's functions, and its status code for "not supported"."""

    names: re.Pattern[str]
    not_supported: int


LIBRARIES = [
    Library(re.compile(r"(__)?cuda[A-Z]"), 801),
    Library(re.compile(r"cublas"), 15),
    Library(re.compile(r"cudnn"), 3000),
    Library(re.compile(r"p?nccl"), 5),
    Library(re.compile(r"cusparse(Lt)?[A-Z]"), 10),
    Library(re.compile(r"cusolver"), 9),
    Library(re.compile(r"cufft"), 16),
    Library(re.compile(r"curand"), 999),
    Library(re.compile(r"nvrtc"), 11),
    Library(re.compile(r"nvJitLink"), 4),
    Library(re.compile(r"cupti"), 27),
    Library(re.compile(r"cuFile"), 5030),
    Library(re.compile(r"nvshmemx?_"), 1),
    Library(re.compile(r"cu[A-Z]"), 801),  # the driver; last, since the pattern matches others too
]
BODIES = [
    (re.compile(r"(Get)?(Error|Status|Result)(String|Name)$|ErrorName$"), Body.TEXT),
    (re.compile(r"cudnnCreate\w*Descriptor$"), Body.HANDLE),
    (re.compile(r"cudnnDestroy\w*Descriptor$"), Body.LETS_GO),
    (re.compile(r"cudnnSet(Stream|\w*Descriptor\w*|Convolution\w+)$"), Body.NOTHING),
    (re.compile(r"cudnn(Convolution|BatchNormalization|Pooling|Activation|Softmax|Spatial)\w*$"), Body.NOTHING),
    # Matrix and vector operations, with the dtype in the name or as an argument.
    (re.compile(r"cublas(?!Set|Create|Destroy|Shutdown|Init|Get)[SDCZHIU][a-z0-9]\w*$"), Body.NOTHING),
    (re.compile(r"cublas(Gemm|Nrm2|Axpy|Dot|Dotc|Scal|Rot|Asum|Copy|Swap|Iamax|Iamin)\w*$"), Body.NOTHING),
]


def c_source(wanted: Iterable[str]) -> str:
    """Return a C file with all functions of ``wanted`` that belong to NVIDIA's libraries.

    They are weak symbols: a C++ file that defines one overrides it.
    """
    lines = [
        "#include <stdlib.h>",
        "int null_gpu_refuse(const char *function, int status);",
        "#pragma GCC visibility push(default)",
    ]
    for name in sorted(wanted):
        library = next((each for each in LIBRARIES if each.names.match(name)), None)
        if library is not None:
            body = next((body for pattern, body in BODIES if pattern.search(name)), Body.REFUSES)
            text = body.format(name=name, status=library.not_supported)
            lines.append(f"__attribute__((weak)) {text}")
    return "\n".join(lines) + "\n"
