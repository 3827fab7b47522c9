"""What an operation of torch reads and writes, from its schema; cached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch

from lorabench.bench.null_gpu.inside.shapes import INDEXED, MASKED

WITHOUT_VALUES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"}
READ_NO_VALUES = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero_", "fill_"}
"""Operations that read the shape of a tensor argument, not its values."""
OF_ACTIVATIONS = re.compile(
    r"mm|bmm|addmm|addbmm|baddbmm|mv|addmv|dot|vdot|einsum|_\w*mm|\w*convolution\w*|\w*attention\w*|\w*_rnn\w*"
)
"""Matmuls and attention are not computed even if they are small: no program decides anything by them alone."""


def _histogram(values: torch.Tensor, *bins: Any, **more: Any) -> torch.Tensor:
    counted: torch.Tensor = torch.ops.aten.histc.default(values.double(), *bins, **more)
    return counted.to(values.dtype)


ON_THE_HOST = {torch.ops.aten.histc.default: _histogram}
"""Host replacements for operations that take integers only on a GPU."""


class Operation(NamedTuple):
    """Properties of one overload of an operation."""

    name: str
    is_view: bool
    computed: bool
    """Whether it is computed on the host too."""
    collective: bool
    """Whether it exchanges values between ranks of a distributed training."""
    counted: bool
    """Whether the shape of its result, or of a tensor that it allocates, depends on values."""
    random: bool
    reads_no_values: bool
    overwrites: bool
    """Whether it writes to an argument without reading it."""
    changes: tuple[tuple[int, str], ...]
    """Positions and names of the arguments that it writes to."""

    def changed(self, args: Any, kwargs: Any) -> list[torch.Tensor]:
        """Return the tensors among the arguments that it writes to."""
        values = [args[place] if place < len(args) else kwargs.get(name) for place, name in self.changes]
        return list(tensors_of(values))


@cache
def operation(func: Any) -> Operation:
    """Return the properties of ``func``."""
    schema = func._schema
    namespace, _, name = schema.name.partition("::")
    random = torch.Tag.nondeterministic_seeded in func.tags
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    return Operation(
        name=name,
        is_view=func.is_view,
        computed=namespace in ("aten", "prims") and name not in WITHOUT_VALUES and not OF_ACTIVATIONS.fullmatch(name),
        collective=namespace in ("c10d", "_c10d_functional", "c10d_functional"),
        counted=torch.Tag.dynamic_output_shape in func.tags or func in INDEXED | MASKED,
        random=random,
        reads_no_values=name in READ_NO_VALUES,
        overwrites=name == "copy_" or random,
        changes=tuple((place, schema.arguments[place].name) for place, is_written in enumerate(written) if is_written),
    )


def tensors_of(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among nested lists, tuples and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from tensors_of(each)
    elif isinstance(values, dict):
        for each in values.values():
            yield from tensors_of(each)
