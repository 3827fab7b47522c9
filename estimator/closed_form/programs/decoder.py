"""A decoder that runs a recorded program."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from lorabench.estimator.closed_form.adapters import Router, Stack
from lorabench.estimator.closed_form.autograd import Tensor
from lorabench.estimator.closed_form.decoders.decoder import Decoder
from lorabench.estimator.closed_form.layout import (
    LENGTH,
    UNIT,
    Dim,
    Shape,
    Sizes,
    Strides,
    Unsupported,
    as_dim,
    contiguous,
)
from lorabench.estimator.closed_form.masks import Masks
from lorabench.estimator.closed_form.modules import Modules
from lorabench.estimator.closed_form.programs.functions import Functions
from lorabench.estimator.closed_form.programs.values import Parts, Value
from lorabench.estimator.closed_form.sizes import ONE, TOKENS, B, S, chunks_of_length
from lorabench.estimator.models.expressions import chunk_of, terms
from lorabench.estimator.models.recordings import Recording

HIDDEN = "#h"
SYMBOLS = {"B": Dim(1, B), "S": Dim(1, S)}


MANY_CHUNKS = 17
"""Chunks of a scan that stand for several, a number that is no size of a model."""


class Mask:
    """The mask of a layer, whose kind the layer knows."""


MASK = Mask()
Environment = dict[str, Any]
OUTER = re.compile(r"'#o(\d+)'")
"""A value from before the layers in a layer's program."""


class Recorded(Decoder):
    """Runs the program of one architecture."""

    def __init__(self, recording: Recording) -> None:
        """Run the program of ``recording``."""
        self.recording = recording
        self.sizes = recording.sizes
        self._outer: Environment = {}
        """The values from before the layers, which live until what follows the layers drops them."""

    def _around(self, m: Modules) -> Any:
        """Return what is before and after the layers."""
        return self._of_implementation(self.recording.around, m)

    def _of_implementation(self, programs: Mapping[str, Any] | None, m: Modules) -> Any:
        assert programs is not None
        # FlashAttention gets the arguments that sdpa gets.
        implementation = "eager" if m.recipe.attn_implementation == "eager" else "sdpa"
        if implementation not in programs:
            raise Unsupported(f"its {implementation} attention is not recorded")
        return programs[implementation]

    def begin(self, m: Modules, make_masks: Callable[..., Masks]) -> tuple[Tensor, Masks, Any, Any]:
        """Run what is before the layers."""
        run, program = Run(self, m), self._around(m)
        run.make_masks = make_masks
        env: Environment = {"#0": Value(Tensor(None, TOKENS, 1, "int64"), *run.shaped(Dim(1, B), Dim(1, S)))}
        statements = program["begin"]
        masked = next((at for at, each in enumerate(statements) if each[1:2] == ["mask"]), len(statements))
        with m.op.tape.scope("embedding"):
            run.statements(statements[:masked], env)
        with m.op.tape.scope("rotary tables"):
            run.statements(statements[masked:], env)
        hidden: Value = env[program["first"]]
        masks = run.masks or make_masks(hidden.tensor.dtype)
        self._outer = env
        used = {f"#{name}" for name in self._used(m)}
        return run.functions.flat(hidden), masks, State({name: env[name] for name in env if name in used}), ()

    def _used(self, m: Modules) -> set[str]:
        """Return the numbers of the values from before the layers that layers use, and so get as arguments."""
        kinds = [self.recording.kinds[kind] for kind in sorted(set(self.recording.order))]
        programs = [self._of_implementation(kind["programs"], m) for kind in kinds]
        return {name for program in programs for name in OUTER.findall(str(program["statements"]))}

    def layer(self, m: Modules, hidden: Tensor, rotary: Any) -> Tensor:
        """Run a layer."""
        assert m.kind is not None
        run = Run(self, m)
        body = self._of_implementation(self.recording.kinds[m.kind]["programs"], m)
        env: Environment = {f"#o{key[1:]}": value for key, value in rotary.env.items()}
        env[HIDDEN] = run.hidden(hidden)
        with m.op.tape.scope("layer"):
            run.statements(body["statements"], env)
        return run.functions.flat(env[body["output"]])

    def final_norm(self, m: Modules, hidden: Tensor, rotary: Any = None) -> Tensor:
        """Run what is between the layers and the head."""
        run, program = Run(self, m), self._around(m)
        env, self._outer = self._outer, {}
        env[HIDDEN] = run.hidden(hidden)
        with m.op.tape.scope("norm", "norm"):
            run.statements(program["end"], env)
        return run.functions.flat(env[program["last"]])

    def scale_logits(self, m: Modules, logits: Tensor) -> Tensor:
        """Run what follows the head."""
        run, program = Run(self, m), self._around(m)
        if not program["logits"]:
            return logits
        env: Environment = {HIDDEN: Value(logits, *run.shaped(Dim(1, B), Dim(1, S), Dim(m.spec.vocab_size)))}
        run.statements(program["logits"], env)
        return run.functions.flat(env[program["output"]])


class State:
    """The values from before the layers that layers get as arguments."""

    def __init__(self, env: Environment) -> None:
        self.env = env

    def __iter__(self) -> Iterator[Tensor]:
        return iter([value.tensor for value in self.env.values() if isinstance(value, Value)])


class Run:
    """One run of a program's statements on modules."""

    def __init__(self, decoder: Recorded, m: Modules) -> None:
        self.decoder = decoder
        self.m = m
        self.functions = Functions(m, Sizes(m.recipe.batch_size > 1, self._length()))
        self.parametrized: dict[str, Router | Stack] = {}
        """Adapted parameters outside linear layers, while their module runs."""
        self.make_masks: Callable[..., Masks] | None = None
        self.masks: Masks | None = None

    def _length(self) -> int:
        """Return the length that stands for all with as many chunks of a scan, if there is one."""
        chunk, length = self.m.spec.scan_chunk, self.m.recipe.seq_len
        if chunk <= 1:
            return LENGTH
        if length <= chunk:
            return length
        return MANY_CHUNKS * chunk - (length % chunk != 0)

    def shaped(self, *shape: Dim) -> tuple[Shape, Strides]:
        """Return ``shape`` and the strides of a contiguous tensor."""
        return shape, self.functions.contiguous(shape)

    def hidden(self, tensor: Tensor) -> Value:
        """Return hidden states (B, S, h)."""
        return Value(tensor, *self.shaped(Dim(1, B), Dim(1, S), Dim(self.m.spec.hidden_size)))

    def statements(self, statements: Sequence[Any], env: Environment) -> None:
        """Run ``statements``; ``env`` has the values, and gets the results."""
        for statement in statements:
            if isinstance(statement, str):  # Python drops the value
                env.pop(statement, None)
                env.pop(f"{statement} of all", None)
                continue
            written, name, positional, *options_ = statement
            results = written.split()
            if name in ("enter", "leave"):
                self.adapted(positional[0], running=name == "enter")
                continue
            if name == "loop":
                count, body, carried = positional
                self.loop(count, body, carried, env)
                continue
            if name == "collect":
                env[f"{written} of all"] = Parts()
                continue
            named = options_[0] if options_ else {}
            if name == "mask":
                if self.masks is None:
                    assert self.make_masks is not None
                    self.masks = self.make_masks(env[positional[1]].tensor.dtype, **named)
                env[results[0]] = MASK
                continue
            if self.masks is not None and any(env.get(str(each)) is MASK for each in (*positional, *named.values())):
                own = self.own_mask()
                env.update({key: own for key, value in env.items() if value is MASK})
                del own
            arguments = [self.decoded(each, env) for each in positional]
            options = {key: self.decoded(each, env) for key, each in named.items()}
            if arguments and isinstance(arguments[0], Mask):
                env[results[0]] = MASK
                continue
            found = self.functions.call(name, arguments, options)
            del arguments, options
            env.update(zip(results, found, strict=True))
            del found

    def own_mask(self) -> Value:
        """Return the mask (B, 1, S, S) as a tensor of the program, which computes with it before the layers."""
        assert self.masks is not None
        shape = Dim(1, B), UNIT, Dim(1, S), Dim(1, S)
        return Value(self.masks.taken(), *self.shaped(*shape))

    def loop(self, count: Any, body: Sequence[Any], carried: Sequence[tuple[str, str]], env: Environment) -> None:
        """Run ``body`` so many times. ``carried``: a value that an iteration makes, and the name by which the next
        iteration reads it."""
        gathered = [name for name in env if name.endswith(" of all")]
        for name in gathered:
            env[name].total = as_dim(self.decoded(count, env))
        times = self.count(count)
        if not times:  # what follows reads the values from before the loop by the names of the first iteration's
            for made_as, read_as in carried:
                if read_as in env:
                    env[made_as] = env.pop(read_as)
        for iteration in range(times):
            self.m.op.tape.iterate(iteration)
            self.statements(body, env)
            for name in gathered:
                made = env.get(name.removesuffix(" of all"))
                if made is not None:
                    env[name].append(made)
            if iteration < times - 1:
                for made_as, read_as in carried:
                    if made_as in env:
                        env[read_as] = env.pop(made_as)
        self.m.op.tape.iterate(None)

    def decoded(self, argument: Any, env: Environment) -> Any:
        """Return an argument: a value, a dimension, a number, or a list of these."""
        if isinstance(argument, str):
            if argument.startswith("#"):
                return env[argument]
            if argument.startswith("="):
                return self.dim(argument)
            return argument
        if isinstance(argument, list):
            match argument:
                case ["parameter", str(path)]:
                    return self.parameter(path)
                case ["buffer", _, list(shape), str(dtype)]:
                    dims = tuple(self.decoded(each, env) for each in shape)
                    whole = tuple(as_dim(each) for each in dims)
                    n = reduce(Dim.times, whole, UNIT)
                    dtype = self.m.recipe.dtype if dtype == "model" else dtype
                    return Value(Tensor(None, n.symbols, n.n, dtype), whole, self.functions.contiguous(whole))
                case ["dtype", "model"]:
                    return self.m.recipe.dtype
                case ["dtype", str(dtype)]:
                    return dtype
                case ["dtype of", ["parameter", str(path)]] if path == f"{self.m.spec.head.name}.weight":
                    return self.m.recipe.dtype
                case ["dtype of", value]:
                    return self.decoded(value, env).tensor.dtype
                case ["other", _]:
                    return None
            if any(isinstance(each, list) and each[:1] == ["each"] for each in argument):
                return self.joined(argument, env)
            return [self.decoded(each, env) for each in argument]
        return argument

    def joined(self, argument: list[Any], env: Environment) -> Parts:
        """Return a list of values, of which some are those of all iterations of a loop."""
        found, counts = Parts(), []
        for each in argument:
            if each[:1] == ["each"]:
                made: Parts = env[f"{each[1]} of all"]
                found += made
                counts.append(made.total)
            else:
                found.append(self.decoded(each, env))
                counts.append(UNIT)
        found.total = reduce(Dim.plus, counts)
        return found

    def adapted(self, module: str, *, running: bool) -> None:
        """Replace the adapted parameters of ``module`` while it runs (peft's `ParamWrapper`)."""
        stacks = [name for name in self.m.weights if name in self.m.adapters and name not in self.m.linears]
        names = [name for name in stacks if name.rpartition(".")[0] == module]
        for name in reversed(names):
            if not running:
                self.parametrized.pop(name, None)
                continue
            base, tensors, shape = self.m.weights[name], self.m.adapters[name], self.m.shapes[name]
            op = self.m.op
            self.parametrized[name] = (
                Stack(op, base, tensors, shape[0]) if len(shape) > 2 else Router(op, base, tensors)
            )

    def size(self, chunk: str) -> int:
        """Return the tokens of a chunk: a number, or a size of the config."""
        return int(chunk) if chunk.isdecimal() else self.decoder.sizes[chunk]

    def count(self, expression: Any) -> int:
        """Return the iterations of a loop."""
        if isinstance(expression, int):
            return expression
        length, total = self.m.recipe.seq_len, 0
        for n, names, _ in terms(expression):
            number = int(n)
            for name in names:
                chunk = chunk_of(name)
                if name == "S":
                    number *= length
                else:
                    number *= self.decoder.sizes[name] if chunk is None else -(-length // self.size(chunk))
            total += number
        return max(total, 0)

    def dim(self, expression: str) -> Dim:
        """Return the dimension that an expression says."""
        total: Dim | None = None
        for n, names, divisors in terms(expression):
            number, symbols = n, ONE
            for name in names:
                chunk = chunk_of(name)
                if name in SYMBOLS:
                    symbols = symbols * SYMBOLS[name].symbols
                elif chunk is not None:
                    symbols = symbols * chunks_of_length(self.size(chunk))
                else:
                    number *= self.decoder.sizes[name]
            for name in divisors:
                number /= self.decoder.sizes[name]
            if number.denominator != 1:
                raise Unsupported(f"{expression} is no whole number")
            term = Dim(int(number), symbols)
            total = term if total is None else total.plus(term)
        assert total is not None
        return total

    def parameter(self, path: str) -> Value:
        """Return a parameter of the modules."""
        if path in self.parametrized:
            return Value(self.parametrized[path].weight(), *self.shaped(*map(Dim, self.m.shapes[path])))
        tensor = self.m.weights.get(path)
        if tensor is None and path.endswith(".weight"):
            tensor = self.m.weights.get(path.removesuffix(".weight"))
        if tensor is None:
            raise Unsupported(f"its program reads {path}")
        shape = tuple(map(Dim, self.m.shapes[path]))
        return Value(tensor, shape, contiguous(self.m.shapes[path]))
