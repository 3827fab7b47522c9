"""What operators give on meta tensors: corrected where kernels differ, and repeated where it was worked out before."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.breakdown import Kernels

Sizes = tuple[tuple[int, ...], tuple[int, ...], Any]
"""Shape, strides and dtype of a tensor."""


def results_on_meta(kernels: Kernels) -> Any:
    """Return a context in which operators on meta tensors give results as ``kernels`` do, and quickly.

    Most of meta's kernels are written in Python and slow. What depends on nothing but the arguments' shapes, strides,
    dtypes and numbers is worked out once; the layers of a model are alike.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    corrections = {torch.ops.aten._grouped_mm.default: _grouped_products}
    if kernels == "cpu":
        corrections[torch.ops.aten.native_layer_norm.default] = _layer_norm_of_the_cpu
    fresh: dict[Any, bool] = {}
    known: dict[Any, list[Sizes | None]] = {}

    class OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Runs operators, or repeats what they gave."""

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # nothing is compiled on meta; to switch the compiler off at every operator takes time

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func not in fresh:
                fresh[func] = _gives_fresh_tensors(func)
            asked: list[Any] = [func]
            repeatable = fresh[func] and _describe((*args, *kwargs.items()), asked)
            key = tuple(asked) if repeatable else None
            seen = known.get(key) if repeatable else None
            if seen is not None:
                return _repeated(seen)
            correction = corrections.get(func)
            result = func(*args, **kwargs) if correction is None else correction(func, args, kwargs)
            if repeatable:
                fresh[func] = not _shares_storage(result, args)  # _unsafe_view, for one, keeps it secret
                sizes = _sizes(result) if fresh[func] else None
                if sizes is not None:
                    known[key] = sizes
            return result

    return OnMeta()  # type: ignore[no-untyped-call]


# Corrections


def _layer_norm_of_the_cpu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Keep the rows' statistics in the weight's dtype; CUDA and meta keep them in float32."""
    output, *statistics = func(*args, **kwargs)
    weight = args[2]
    dtype = output.dtype if weight is None else weight.dtype
    return output, *(each.to(dtype) for each in statistics)


def _grouped_products(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take other dtypes than bfloat16, for which kernels exist as well."""
    import torch

    dtype = args[0].dtype
    as_bfloat16 = [factor.to(torch.bfloat16) for factor in args[:2]]
    output = func(*as_bfloat16, *args[2:], **kwargs)
    return torch.empty_strided(output.shape, output.stride(), dtype=dtype, device=output.device)


# Repetition


def _gives_fresh_tensors(func: Any) -> bool:
    """Tell whether an operator says that its results are new tensors, neither views nor arguments written to."""
    schema = func._schema
    aliases = [each.alias_info for each in (*schema.arguments, *schema.returns)]
    return bool(schema.returns) and not any(aliases) and all(str(each.type) == "Tensor" for each in schema.returns)


def _describe(values: tuple[Any, ...], into: list[Any]) -> bool:
    """Append to ``into`` all that a result may depend on; False where that takes more than shapes and numbers."""
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_meta:  # it may be a number in disguise, whose dtype counts for less
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
        each is not None and each.untyped_storage()._cdata == other.untyped_storage()._cdata
        for each in made
        for other in given
    )


def _sizes(result: Any) -> list[Sizes | None] | None:
    """Return what it takes to repeat ``result``; None where some of it is not on meta."""
    tensors = result if isinstance(result, tuple) else (result,)
    if any(tensor is not None and not tensor.is_meta for tensor in tensors):
        return None
    return [None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]


def _repeated(sizes: list[Sizes | None]) -> Any:
    import torch

    tensors = [
        None if each is None else torch.empty_strided(each[0], each[1], dtype=each[2], device="meta") for each in sizes
    ]
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
