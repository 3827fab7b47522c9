"""Results of operators on meta tensors: corrected if a device's kernels return others, and cached by arguments."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.devices.backend import Backend

Sizes = tuple[tuple[int, ...], tuple[int, ...], Any]
"""Shape, strides and dtype of a tensor."""


class MetaResults:
    """Runs operators on meta tensors fast, with the shapes and dtypes of results on ``backend``.

    Most meta kernels are written in Python and slow. Results that depend only on shapes, strides, dtypes and numbers
    are computed once: the layers of a model are identical, so most calls repeat an earlier one. An in-place elementwise
    operation runs once, which checks it. Later calls skip it, since meta tensors have no elements.
    """

    def __init__(self, backend: Backend) -> None:
        import torch

        self.reads_numbers = False
        """Whether operators may read a number from a tensor. A meta tensor has none, so they read 1."""
        self._corrections = {torch.ops.aten._grouped_mm.default: _grouped_mm}
        if backend == "cpu":
            self._corrections[torch.ops.aten.native_layer_norm.default] = _layer_norm_of_the_cpu
        self._read = torch.ops.aten._local_scalar_dense.default
        self._repeatable: dict[int, bool] = {}
        """By id: operators are never freed, and their hash is slow."""
        self._known: dict[tuple[Any, ...], list[Sizes | int | None] | None] = {}
        """Operator and arguments → the sizes of its results; None for an operation in place."""

    def __call__(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of ``operator``, computed or from the cache."""
        repeatable = self._repeatable.get(id(operator))
        if repeatable is None:
            repeatable = self._repeatable[id(operator)] = _gives_fresh_tensors(operator) or _writes_in_place(operator)
        if not repeatable:
            return self._run(operator, args, kwargs)
        asked: list[Any] = [id(operator)]
        if not _describe((*args, *kwargs.items()) if kwargs else args, asked):
            return self._run(operator, args, kwargs)
        key = tuple(asked)
        if key in self._known:
            known = self._known[key]
            return args[0] if known is None else _repeated(known)
        result = self._run(operator, args, kwargs)
        if result is args[0]:
            self._known[key] = None
        elif _shares_storage(result, args):  # the schema of some views, such as _unsafe_view, declares no alias
            self._repeatable[id(operator)] = False
        elif (sizes := _sizes(result)) is not None:
            self._known[key] = sizes
        return result

    def _run(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        correction = self._corrections.get(operator)
        if operator is self._read and self.reads_numbers:
            return 1.0
        return operator(*args, **kwargs) if correction is None else correction(operator, args, kwargs)


def results_on_meta(results: MetaResults) -> Any:
    """Return a context in which all operators on meta tensors run through ``results``."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Passes every operator on."""

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # nothing is compiled on meta, and disabling the compiler for each operator takes time

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return results(func, args, kwargs or {})

    return OnMeta()  # type: ignore[no-untyped-call]


# Corrections


def _layer_norm_of_the_cpu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return native_layer_norm with each row's mean and deviation in the weight's dtype; CUDA and meta use float32."""
    output, *statistics = func(*args, **kwargs)
    weight = args[2]
    dtype = output.dtype if weight is None else weight.dtype
    return output, *(each.to(dtype) for each in statistics)


def _grouped_mm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return _grouped_mm for any dtype: its meta kernel accepts bfloat16 only, but CUDA's and the CPU's accept more."""
    import torch

    dtype = args[0].dtype
    as_bfloat16 = [factor.to(torch.bfloat16) for factor in args[:2]]
    output = func(*as_bfloat16, *args[2:], **kwargs)
    return torch.empty_strided(output.shape, output.stride(), dtype=dtype, device=output.device)


# Repetition


def _gives_fresh_tensors(func: Any) -> bool:
    """Return whether the operator's schema declares new tensors as results: neither views nor written arguments."""
    schema = func._schema
    aliases = [each.alias_info for each in (*schema.arguments, *schema.returns)]
    kinds = {str(each.type) for each in schema.returns}
    return bool(kinds) and not any(aliases) and kinds <= {"Tensor", "int", "SymInt"}


def _writes_in_place(func: Any) -> bool:
    """Return whether the operator is elementwise and in place: it only writes to its first argument and returns it."""
    import torch

    return torch.Tag.pointwise in func.tags and func._schema.name.endswith("_")


def _describe(values: tuple[Any, ...], into: list[Any]) -> bool:
    """Append to ``into`` all that a result may depend on; return False if that is more than shapes and numbers."""
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_meta:  # it may be a wrapped number, whose dtype does not promote
                return False
            into += (value.shape, value.stride(), value.dtype)
        elif isinstance(value, list | tuple):
            into.append(len(value))
            if not _describe(tuple(value), into):
                return False
        else:
            into += (type(value), value)
    return True


def _shares_storage(result: Any, arguments: tuple[Any, ...]) -> bool:
    import torch

    given = [each for each in arguments if isinstance(each, torch.Tensor)]
    made = result if isinstance(result, tuple) else (result,)
    return any(
        isinstance(each, torch.Tensor) and each.untyped_storage()._cdata == other.untyped_storage()._cdata
        for each in made
        for other in given
    )


def _sizes(result: Any) -> list[Sizes | int | None] | None:
    """Return the sizes of ``result`` that `_repeated` needs; None if a tensor of it is not on meta."""
    import torch

    results = result if isinstance(result, tuple) else (result,)
    sizes: list[Sizes | int | None] = []
    for each in results:
        if not isinstance(each, torch.Tensor):
            sizes.append(each)
        elif each.is_meta:
            sizes.append((each.shape, each.stride(), each.dtype))
        else:
            return None
    return sizes


def _repeated(sizes: list[Sizes | int | None]) -> Any:
    import torch

    results = [
        torch.empty_strided(each[0], each[1], dtype=each[2], device="meta") if isinstance(each, tuple) else each
        for each in sizes
    ]
    return results[0] if len(results) == 1 else tuple(results)
