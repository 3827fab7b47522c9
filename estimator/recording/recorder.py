"""Record the forward pass of an architecture: the calls of torch's functions, from token ids to logits.

transformers' own code runs on meta tensors. Each call is written down with its arguments and results, and so is the
moment at which Python drops a tensor: both decide which tensors are in memory. Linear layers, attention, experts and
masks are one call each, since a recipe decides how they run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import modeling_utils

from lorabench.estimator.recording.loops import Statement, Value, folded
from lorabench.estimator.trace.cuda_semantics import running_on_meta
from lorabench.estimator.training.patches import replaced

SKIPPED = {
    "__get__",
    "size",
    "dim",
    "numel",
    "is_floating_point",
    "is_complex",
    "_set_grad_enabled",
    "stride",
    "__len__",
}
"""Functions that make no tensor."""
MASKS = {
    "create_causal_mask": "full",
    "create_sliding_window_causal_mask": "sliding",
    "create_chunked_causal_mask": "chunked",
}
"""transformers' function → the kind of mask that it makes."""


class NotRecordable(Exception):  # noqa: N818 - it says what the architecture does
    """The architecture does something that a program cannot say."""


class Recorder(TorchFunctionMode):
    """Writes down the calls of torch's functions while a model runs."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList) -> None:
        super().__init__()
        self._model = model
        self._layers = layers
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self._prefixes = {id(layer): f"{path}." for path, layer in model.named_modules() if layer in set(layers)}
        self._held: list[torch.Tensor] = [*model.buffers()]
        """Tensors that are known by their ids, which would be others' if these tensors were gone."""
        self._buffers = {id(buffer): name for name, buffer in model.named_buffers()}
        head = model.get_output_embeddings()  # type: ignore[operator]
        self._head = next(path for path, module in model.named_modules() if module is head)
        self._linears = {
            id(module.weight): path for path, module in model.named_modules() if isinstance(module, nn.Linear)
        }
        self._numbers: dict[int, int] = {}
        self._next = 0
        self._homes: dict[int, int] = {}
        """Value → the segment that made it."""
        self._dtypes: dict[torch.dtype, Any] = {}
        """dtype → the tensor or parameter whose dtype the model's code asked for last."""
        self.segments: list[list[Statement]] = [[]]
        """Before the layers, each layer, between and after them."""
        self.layer_of: list[int] = [-1]
        self.inputs: dict[int, int] = {}
        """Segment → the hidden states that it gets."""
        self.outputs: dict[int, int] = {}
        self._quiet = 0
        self.logits = -1
        """The value of the model's output."""
        self._turned: dict[int, str] = {}
        """Turned weights of linear layers → the layer."""
        self._without_bias: dict[int, tuple[str, torch.Tensor, Any]] = {}
        """Products of turned weights → the linear layer, its input, and the bias that its own class adds next."""
        self._kinds: dict[int, str] = {}
        """Value → the kind of the mask that it is."""

    # Values

    def name(self, tensor: torch.Tensor) -> int:
        """Return the number of ``tensor``; a new one if it has none."""
        key = id(tensor)
        if key not in self._numbers:
            number = self._numbers[key] = self._next
            self._next += 1
            self._homes[number] = len(self.segments) - 1
            weakref.finalize(tensor, self._drop, key, number).atexit = False
        return self._numbers[key]

    def _drop(self, key: int, number: int) -> None:
        if self._numbers.get(key) == number:
            del self._numbers[key]
        self.segments[-1].append(Statement("del", (Value(number),), ()))

    def _encode(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            if id(argument) in self._parameters:
                return ["parameter", self._parameters[id(argument)]]
            if id(argument) in self._buffers:
                return [
                    "buffer",
                    self._buffers[id(argument)],
                    list(argument.shape),
                    "model" if argument.dtype == torch.bfloat16 else str(argument.dtype).removeprefix("torch."),
                ]
            if id(argument) not in self._numbers:
                raise NotRecordable(f"a tensor {tuple(argument.shape)} from nowhere")
            return Value(self._numbers[id(argument)])
        if isinstance(argument, torch.dtype):
            name = str(argument).removeprefix("torch.")
            if name == "bfloat16":
                if argument not in self._dtypes:
                    return ["dtype", "model"]
                return ["dtype of", self._dtypes[argument]]
            return ["dtype", name]
        if isinstance(argument, torch.device):
            return None
        if isinstance(argument, torch.Size | tuple | list):
            return [self._encode(each) for each in argument]
        if isinstance(argument, slice):
            return ["slice", *map(self._encode, (argument.start, argument.stop, argument.step))]
        if argument is Ellipsis:
            return ["..."]
        if isinstance(argument, float):
            return 1.0  # a factor changes no size
        if argument is None or isinstance(argument, bool | int | str):
            return argument
        return ["other", str(argument)]

    # Calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if self._quiet or name in SKIPPED:
            result = func(*args, **kwargs)
            if name == "__get__" and isinstance(result, torch.Tensor) and not self._quiet:
                self._turn(func.__self__.__name__, args[0], result)
            if isinstance(result, torch.dtype) and not self._quiet:
                if id(args[0]) in self._numbers:
                    self._dtypes[result] = Value(self._numbers[id(args[0])])
                elif id(args[0]) in self._parameters:
                    self._dtypes[result] = ["parameter", self._parameters[id(args[0])]]
            return result
        if name in ("matmul", "__matmul__") and id(args[1]) in self._turned:
            result = func(*args, **kwargs)
            path = self._turned[id(args[1])]
            bias = self._model.get_submodule(path).bias
            if bias is None:
                self.leaf("linear_module", [args[0], path], {}, result)
            else:
                self._without_bias[id(result)] = path, args[0], bias
            return result
        if name in ("add", "__add__") and id(args[0]) in self._without_bias:
            path, x, bias = self._without_bias.pop(id(args[0]))
            if args[1] is not bias:
                raise NotRecordable(f"{path} without its bias")
            result = func(*args, **kwargs)
            self.leaf("linear_module", [x, path], {"apart": True}, result)
            return result
        if name == "__getitem__":
            args = args[0], _from_end(args[0], args[1])
        encoded = self._encode(args), {key: self._encode(value) for key, value in kwargs.items() if key not in LEFT_OUT}
        result = func(*args, **kwargs)
        self._write(name, func, args, encoded, result)
        return result

    def _turn(self, name: str, tensor: torch.Tensor, result: torch.Tensor) -> None:
        """Write down a property that is a tensor. A linear layer's weight may be turned for a matmul of its own."""
        if name == "T" and id(tensor) in self._linears:
            self._turned[id(result)] = self._linears[id(tensor)]
            self._held.append(result)
        elif name in ("T", "mT", "data"):
            self.leaf(name, [tensor], {}, result)

    def _write(self, name: str, func: Any, args: Any, encoded: tuple[Any, Any], result: Any) -> None:
        positional, named = encoded
        if name in ("__getitem__", "__setitem__"):
            positional = [positional[0], _any_place(positional[1]), *positional[2:]]
        if name == "__setitem__":
            self.segments[-1].append(Statement(name, (), positional, {}))
            return
        results = list(result) if isinstance(result, tuple | list) else [result]
        if not all(isinstance(each, torch.Tensor) for each in results):
            return
        if name == "linear" and id(args[1]) in self._linears:
            name, positional, named = "linear_module", [positional[0], self._linears[id(args[1])]], {}
        in_place = any(each is args[0] for each in results) if args else False
        if in_place and not (name.endswith("_") or name == "__setitem__"):
            return  # the function returned its argument, such as dropout of probability 0
        self.segments[-1].append(Statement(name, tuple(Value(self.name(each)) for each in results), positional, named))

    def leaf(self, name: str, positional: list[Any], named: dict[str, Any], *results: torch.Tensor) -> None:
        """Write down a call that a recipe decides about."""
        self.segments[-1].append(
            Statement(
                name,
                tuple(Value(self.name(each)) for each in results),
                [self._encode(each) for each in positional],
                {key: self._encode(value) for key, value in named.items()},
            )
        )

    def program(self, path: str) -> dict[str, Any]:
        """Return the recording as a program. ``path``: of the layers.

        Raises:
            NotRecordable: a layer reads what an earlier one made, or something happens between layers.
        """
        logits = self.logits
        segments = [folded(segment) for segment in self.segments]
        numbers = [number for number, layer in enumerate(self.layer_of) if layer >= 0]
        first, last = numbers[0], numbers[-1]
        for number in range(first, last):
            if self.layer_of[number] < 0 and any(each.function != "del" for each in segments[number]):
                raise NotRecordable(f"{segments[number][0].function} between two layers")
        bodies: list[dict[str, Any]] = []
        order = []
        for number in numbers:
            body = self._body(number, segments[number], f"{path}.{self.layer_of[number]}.")
            if body not in bodies:
                bodies.append(body)
            order.append(bodies.index(body))
        after = segments[last + 1]
        head = next(
            (
                at
                for at, each in enumerate(after)
                if each.function == "linear_module" and each.positional[1] == self._head
            ),
            None,
        )
        if head is None:
            raise NotRecordable("no linear layer after the layers")
        hidden = self.outputs[last]
        scaling = after[head + 1 :]
        while scaling and scaling[-1].function == "del":
            scaling.pop()
        local = {number: at for at, number in enumerate(number for number in self._homes if self._homes[number] == 0)}
        outer = partial(self._outer, local, hidden=hidden)
        scaled = partial(self._outer, local, hidden=after[head].results[0].number)
        return {
            "begin": [_plain(each, self._plain_name) for each in segments[0]],
            "first": self._plain_name(self.inputs[first]),
            "layers": bodies,
            "order": order,
            "end": [_plain(each, outer) for each in after[:head]],
            "last": outer(after[head].positional[0].number),
            "logits": [_plain(each, scaled) for each in scaling],
            "output": scaled(logits),
        }

    def _plain_name(self, number: int) -> str:
        return f"#{number}"

    def _outer(self, local: dict[int, int], number: int, hidden: int) -> str:
        """Return the name of a value after the layers: values of before the layers have theirs, others follow."""
        return "#h" if number == hidden else f"#{local.setdefault(number, len(local))}"

    def _body(self, number: int, segment: list[Statement], prefix: str) -> dict[str, Any]:
        own: dict[int, str] = {self.inputs[number]: "#h"}

        def name(value: int) -> str:
            if value in own:
                return own[value]
            home = self._homes[value]
            if home == 0:
                own[value] = f"#o{value}"
                return own[value]
            if home != number:
                raise NotRecordable("a layer reads what an earlier one made")
            locals_ = sum(not each.startswith("#o") for each in own.values())
            own[value] = f"#{locals_}"
            return own[value]

        statements = [_plain(each, name, prefix) for each in segment]
        masks = {self._kinds[value] for value in self._kinds if f"#o{value}" in own.values()}
        return {"statements": statements, "output": name(self.outputs[number]), "mask": "+".join(sorted(masks))}

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Return a context whose calls are not written down."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    def mark(self, word: str, path: str, *_: Any) -> None:
        """Write down that a module begins or ends, whose parameters an adapter may replace while it runs."""
        self.segments[-1].append(Statement(word, (), [path]))

    # Layers

    def enter(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin the segment of a layer."""
        hidden = args[0] if args else kwargs["hidden_states"]
        self.segments.append([])
        self.layer_of.append(layer)
        self.inputs[len(self.segments) - 1] = self._numbers[id(hidden)]

    def leave(self, output: Any) -> None:
        """End the segment of a layer."""
        hidden = output[0] if isinstance(output, tuple) else output
        self.outputs[len(self.segments) - 1] = self._numbers[id(hidden)]
        self.segments.append([])
        self.layer_of.append(-1)


def _any_place(index: Any) -> Any:
    """Return an index with the first place of a dimension instead of another one: it changes no size."""
    if isinstance(index, list) and index[:1] not in (["slice"], ["..."]):
        return [_any_place(each) for each in index]
    return 0 if type(index) is int else index


def _calls(statement: Statement, path: str) -> bool:
    """Return whether a statement is the call of the linear layer at ``path``."""
    return statement.function == "linear_module" and statement.positional[1] == path


def _plain(statement: Statement, name: Callable[[int], str], prefix: str = "") -> Any:
    """Return a statement as lists, with values by ``name`` and paths without ``prefix``; ``del`` as the value alone."""

    def plain(argument: Any) -> Any:
        if isinstance(argument, Value):
            return name(argument.number)
        if isinstance(argument, Statement):
            return _plain(argument, name, prefix)
        if isinstance(argument, list | tuple):
            return [plain(each) for each in argument]
        if isinstance(argument, str):
            return argument.removeprefix(prefix)
        return argument

    if statement.function == "del":
        return name(statement.results[0].number)
    named = {key: plain(value) for key, value in statement.named.items()}
    results = " ".join(name(value.number) for value in statement.results)
    return [results, statement.function, plain(statement.positional), *([named] if named else [])]


def _from_end(tensor: torch.Tensor, index: Any) -> Any:
    """Return ``index`` with slices that leave out the first elements counted from the end: its length is then clear
    also if the number of elements is a size of the config, and the length that of the sequence."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts):
        return index
    missing = tensor.dim() - sum(part is not None and part is not Ellipsis for part in parts)
    at, found = 0, []
    for part in parts:
        if isinstance(part, slice) and part.stop is None and part.step is None and (part.start or 0) > 0:
            found.append(slice(min(part.start - tensor.shape[at], 0) or tensor.shape[at], None))
        else:
            found.append(part)
        at += missing if part is Ellipsis else part is not None
    return tuple(found) if isinstance(index, tuple) else found[0]


LEFT_OUT = {
    "padding_idx",
    "max_norm",
    "norm_type",
    "scale_grad_by_freq",
    "sparse",
    "inplace",
    "_stacklevel",
    "device",
    "non_blocking",
    "memory_format",
    "requires_grad",
    "layout",
    "pin_memory",
    "out",
    "copy",
}
"""Arguments that change no size."""


def record(model: nn.Module, layers: nn.ModuleList, implementation: str, batch: int, length: int) -> Recorder:
    """Return the recording of one forward pass of ``model`` on (``batch``, ``length``) tokens.

    Raises:
        NotRecordable: the architecture does something that a program cannot say.
    """
    recorder = Recorder(model, layers)
    with torch.inference_mode(), running_on_meta(model, "cuda", None, "8.0"), ExitStack() as stack:
        ids = torch.zeros((batch, length), dtype=torch.int64, device="meta")
        recorder.name(ids)
        for number, layer in enumerate(layers):
            stack.callback(
                layer.register_forward_pre_hook(
                    lambda module, args, kwargs, number=number: recorder.enter(number, args, kwargs), with_kwargs=True
                ).remove
            )
            stack.callback(layer.register_forward_hook(lambda module, args, output: recorder.leave(output)).remove)

        def note_embedded(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            recorder.leaf("embedded", [output], {})

        table: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        stack.callback(table.register_forward_hook(note_embedded).remove)
        for path, module in model.named_modules():
            if _owns_matrices(module):
                stack.callback(module.register_forward_pre_hook(partial(recorder.mark, "enter", path)).remove)
                stack.callback(module.register_forward_hook(partial(recorder.mark, "leave", path)).remove)
        for patch in _leaves(model, recorder, implementation):
            stack.enter_context(patch)
        stack.enter_context(recorder)
        output = model(input_ids=ids, use_cache=False)
        recorder.logits = recorder._numbers[id(output.logits)]
    return recorder


def _owns_matrices(module: nn.Module) -> bool:
    """Return whether a module has matrices, or stacks of them, and is no linear layer or table: a router, experts."""
    own = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    return own and not isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d)


def _leaves(model: nn.Module, recorder: Recorder, implementation: str) -> Iterator[Any]:
    import sys

    modules = {sys.modules[type(module).__module__] for module in model.modules()}
    for module in modules:
        for name, kind in MASKS.items():
            if hasattr(module, name):
                yield replaced(module, name, partial(_mask, recorder, kind, implementation))
        if hasattr(module, "GeLUFunction"):
            yield replaced(module.GeLUFunction, "apply", partial(_bloom_gelu, recorder))
        if hasattr(module, "repeat_kv"):
            yield replaced(module, "repeat_kv", partial(_repeat_heads, recorder))
    if implementation == "sdpa":
        yield replaced(modeling_utils.AttentionInterface, "get_interface", lambda *_: partial(_attention, recorder))


def _mask(recorder: Recorder, kind: str, implementation: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    embeds = kwargs.get("inputs_embeds", kwargs.get("input_embeds"))
    embeds = args[1] if embeds is None else embeds
    # Without this option, transformers makes no mask where the kernel applies the causal one itself.
    always = {"always": True} if kwargs.get("allow_is_causal_skip") is False else {}
    with recorder.quiet():
        batch, length = embeds.shape[:2]
        dtype = torch.bool if always and implementation == "sdpa" else embeds.dtype
        mask = torch.empty((batch, 1, length, length), dtype=dtype, device="meta")
    recorder.leaf("mask", [kind, embeds], always, mask)
    recorder._kinds[recorder.name(mask)] = kind
    return mask


def _repeat_heads(recorder: Recorder, hidden_states: Any, n_rep: int) -> torch.Tensor:
    with recorder.quiet():
        batch, heads, length, width = hidden_states.shape
        repeated = torch.empty((batch, heads * n_rep, length, width), dtype=hidden_states.dtype, device="meta")
    recorder.leaf("repeat_heads", [hidden_states, n_rep], {}, repeated)
    return repeated


def _bloom_gelu(recorder: Recorder, x: torch.Tensor) -> torch.Tensor:
    with recorder.quiet():
        output = torch.empty_like(x)
    recorder.leaf("bloom_gelu", [x], {}, output)
    return output


def _attention(
    recorder: Recorder, module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    with recorder.quiet():
        batch, heads, length, _ = query.shape
        output = torch.empty((batch, length, heads, value.shape[-1]), dtype=query.dtype, device="meta")
    named = {
        name: value
        for name, value in kwargs.items()
        if name in ("dropout", "s_aux", "position_bias", "softcap") and value is not None
    }
    recorder.leaf("attention", [query, key, value, attention_mask], named, output)
    return output, None
