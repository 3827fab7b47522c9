"""The smallest Triton kernel, to test whether Triton compiles and launches here. Importing this needs triton."""

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def add_one(numbers, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803 - Triton's constants
    """Add 1 to each of ``COUNT`` numbers."""
    places = tl.arange(0, COUNT)
    tl.store(numbers + places, tl.load(numbers + places) + 1)
