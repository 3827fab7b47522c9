"""Persistent memory of a recipe, term by term: weights, adapters, gradients, optimizer states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.explanation.letters import Widths
from lorabench.estimator.explanation.lines import Line
from lorabench.estimator.explanation.optimizer_states import OptimizerStates
from lorabench.estimator.explanation.trained import Trained
from lorabench.estimator.memory.quantization import BLOCK, NESTED_BLOCK, quantized_bytes
from lorabench.estimator.methods.base import Adapter, AdapterTensor
from lorabench.estimator.models.spec import Linear, Weight
from lorabench.estimator.recipes.resolved import ResolvedRecipe

PARTS = {"attention": "attention", "feed_forward": "feed-forward", "norm": "norms"}
"""Part of a layer → its name for people."""


class PersistentLines:
    """The persistent terms of one recipe."""

    def __init__(self, resolved: ResolvedRecipe, backend: Backend) -> None:
        self.resolved = resolved
        self.spec = resolved.spec
        self.recipe = resolved.recipe
        self.backend = backend
        self.widths = Widths(resolved.spec)
        self.tensors = resolved.trained_tensors
        self.trained = Trained(self.tensors)

    # Weights

    def weights(self) -> Iterator[Line]:
        """Yield the base weights that are not quantised, by part."""
        spec = self.spec
        for weight in spec.embeddings:
            source = self._dtype_and_source(weight.name)
            yield self._parameters(weight.name.removesuffix(".weight"), 1, [weight], source)
        for linear in spec.outside:
            if self.recipe.quantization is None or not linear.quantizable:
                yield self._parameters(linear.name, 1, [linear])
        for group in spec.layers:
            stacked = group.experts
            tensors: list[Linear | Weight] = [weight for weight in group.weights if weight not in stacked]
            in_four_bits = group.quantizable if self.recipe.quantization is not None else []
            tensors = [*(linear for linear in group.linears if linear not in in_four_bits), *tensors]
            for part, name in PARTS.items():
                chosen = [tensor for tensor in tensors if tensor.part == part]
                if chosen:
                    yield self._parameters(f"{name} of {group.count:,} layers", group.count, chosen)
            if stacked:
                what = f"router and experts of {group.count:,} layers"
                yield self._parameters(what, group.count, stacked, self._dtype_and_source_of_experts())
        for weight in spec.final_norm:
            yield self._parameters(weight.name, 1, [weight])
        if not spec.tie_word_embeddings:
            yield self._parameters("head", 1, [spec.head], self._dtype_and_source(spec.head.name))
        elif spec.head.bias:
            yield self._parameters("bias of the head", 1, [Weight("bias", (spec.head.out_features,), "head")])
        if self.recipe.quantization is not None:
            yield from self._biases()

    def _biases(self) -> Iterator[Line]:
        for group in self.spec.groups:
            biases = [
                Weight(linear.name, (linear.out_features,), linear.part) for linear in group.quantizable if linear.bias
            ]
            if biases:
                source = "bitsandbytes: keeps the biases of 4-bit layers in the compute dtype"
                yield self._parameters(
                    "biases outside the layers"
                    if group.linears == self.spec.outside
                    else f"biases of {group.count:,} layers",
                    group.count,
                    biases,
                    (self.recipe.compute_dtype, source),
                )

    def _parameters(
        self,
        what: str,
        count: int,
        tensors: Iterable[Linear | Weight],
        dtype_and_source: tuple[str, str] | None = None,
    ) -> Line:
        """Return the line of ``count`` copies of ``tensors``."""
        dtype, source = dtype_and_source or self._dtype_and_source()
        shapes = Counter[str]()
        elements = 0
        for tensor in tensors:
            elements += tensor.parameters
            if isinstance(tensor, Weight):
                shapes["·".join(self._letters(tensor))] += 1
            else:
                shapes[f"{self.widths.name(tensor.in_features)}·{self.widths.name(tensor.out_features)}"] += 1
                shapes[self.widths.name(tensor.out_features)] += tensor.bias
        formula = " + ".join(shape if times == 1 else f"{times}·{shape}" for shape, times in shapes.items() if times)
        if " + " in formula:
            formula = f"({formula})"
        itemsize = ITEMSIZE[dtype]
        times, times_value = ("", "") if count == 1 else (f"{self._layers(count)} · ", f"{count:,} · ")
        return Line(
            what,
            f"{times}{formula} · {itemsize} B",
            f"{times_value}{elements:,} · {itemsize}",
            count * elements * itemsize,
            source,
        )

    def _letters(self, weight: Weight) -> list[str]:
        """Return the axes of ``weight`` in letters."""
        letters = [self.widths.name(size) for size in weight.shape]
        if weight.part == "feed_forward":  # a router or a stack of experts
            letters[0] = "E"
            if weight.name.endswith("gate_up_proj"):
                letters[1] = f"2·{self.widths.name(weight.shape[1] // 2)}"
        return letters

    def _dtype_and_source(self, name: str = "") -> tuple[str, str]:
        """Return the dtype of the weight ``name`` and its reason; without a name, of weights that are not recast."""
        dtype = self.recipe.dtype_of(name)
        if dtype != self.recipe.unquantized_dtype:
            return dtype, f"TRL: peft_module_casting_to_bf16 casts embeddings and head to {dtype}"
        if self.recipe.prepared:
            return dtype, "peft: prepare_model_for_kbit_training casts unquantised weights to float32"
        return dtype, f"transformers: loads parameters in {dtype}"

    def _dtype_and_source_of_experts(self) -> tuple[str, str]:
        dtype, source = self._dtype_and_source()
        if self.recipe.quantization is None:
            return dtype, source
        return dtype, f"bitsandbytes: quantises linear layers, not stacked experts; {source}"

    def _layers(self, count: int) -> str:
        return "L" if count == self.spec.num_hidden_layers else f"{count:,}"

    def buffers(self) -> Iterator[Line]:
        """Yield the buffers of the layers, which are no parameters."""
        for group in self.spec.layers:
            for buffer in group.buffers:
                shape = "·".join(f"{size:,}" for size in buffer.shape if size > 1)
                yield Line(
                    f"{buffer.name} of {group.count:,} layers",
                    f"{self._layers(group.count)} · {shape} · {buffer.bytes_per_element} B",
                    f"{group.count:,} · {prod(buffer.shape):,} · {buffer.bytes_per_element}",
                    group.count * buffer.bytes,
                    "transformers: a tensor of the module that is no parameter",
                )

    def quantized_weights(self) -> Iterator[Line]:
        """Yield the tensors that bitsandbytes stores for the weights of the linear layers."""
        quantization = self.recipe.quantization
        if quantization is None:
            return
        double = quantization.double_quant
        sizes = [
            (linear.in_features * linear.out_features, group.count)
            for group in self.spec.groups
            for linear in group.quantizable
        ]
        if not sizes:
            return
        kept = [(quantized_bytes(n, double_quant=double), count) for n, count in sizes]
        elements, tensors = sum(n * count for n, count in sizes), sum(count for _, count in sizes)
        absmax_itemsize = 1 if double else 4
        absmax = sum(part.absmax * count for part, count in kept)
        yield Line(
            f"{quantization.quant_type} codes",
            "elements of the linear layers / 2 · 1 B",
            f"{elements:,} / 2 · 1",
            sum(part.codes * count for part, count in kept),
            "bitsandbytes: Linear4bit packs two codes in a byte",
        )
        yield Line(
            "absmax, uint8" if double else "absmax, float32",
            f"elements / {BLOCK} · {absmax_itemsize} B",
            f"{absmax // absmax_itemsize:,} · {absmax_itemsize}",
            absmax,
            f"bitsandbytes: one scale for each {BLOCK} weights" + (", quantised too" if double else ""),
        )
        if double:
            nested = sum(part.nested_absmax * count for part, count in kept)
            yield Line(
                "absmax of the absmax, float32",
                f"elements / ({BLOCK} · {NESTED_BLOCK}) · 4 B",
                f"{nested // 4:,} · 4",
                nested,
                f"bitsandbytes: double quantisation, one scale for each {NESTED_BLOCK} absmax",
            )
        tables = kept[0][0].tables
        yield Line(
            "codebooks",
            f"tensors · {tables:,} B",
            f"{tensors:,} · {tables:,}",
            tensors * tables,
            "bitsandbytes: 16 float32" + ("; of the absmax 256 and an offset" if double else ""),
        )

    # Trained tensors

    def adapters(self) -> Iterator[Line]:
        """Yield the adapters, one line per kind of adapted module."""
        adapter = self.recipe.adapter
        if adapter is None:
            return
        for linear, count in self.resolved.adapted_linears:
            yield self._adapters(linear.name, count, adapter, adapter.tensors(linear), {}, {})
        for weight, count in self.resolved.adapted_experts:
            tensors = adapter.expert_tensors(weight, self.resolved.spec.model_type)
            stack, side_by_side = prod(weight.shape[:-2]), tensors[0].shape[0] // (adapter.rank or 1)
            times = {"2": 2} if side_by_side == 2 * stack else {}
            letters = self._letters(weight)
            times |= dict.fromkeys(letters[:-2], stack)
            ends = dict(zip(weight.shape[-2:], letters[-2:], strict=True))
            yield self._adapters(weight.name, count, adapter, tensors, times, ends)
        for module in self.resolved.modules_to_save:
            weights = [Weight(name, shape, "other") for name, shape in module.tensors]
            dtype = self.recipe.dtype_of(module.path)
            yield self._parameters(
                f"copy of {module.path}", 1, weights, (dtype, f"peft: modules_to_save, copies in {dtype}")
            )

    def _adapters(
        self,
        what: str,
        count: int,
        adapter: Adapter,
        tensors: tuple[AdapterTensor, ...],
        times: dict[str, int],
        ends: dict[int, str],
    ) -> Line:
        """Return the line of the adapters of module ``what`` in ``count`` layers.

        ``times``: letter → number of adapters in one tensor, such as one per expert. ``ends``: letters of widths that
        `Widths` does not have.
        """
        itemsize = ITEMSIZE[adapter.adapter_dtype]
        factors = times | ({} if adapter.rank is None else {"r": adapter.rank})
        widths = [tensor.elements // prod(factors.values()) for tensor in tensors]
        letters = " + ".join(ends.get(width) or self.widths.name(width) for width in widths)
        source = f"peft: {adapter.tensors_in_words}, {adapter.adapter_dtype}"
        if "E" in times:
            source += " for each expert" + (", with twice the rank for fused gate and up" if "2" in times else "")
        return Line(
            what,
            " · ".join(
                [self._layers(count), *factors, f"({letters})" if len(widths) > 1 else letters, f"{itemsize} B"]
            ),
            " · ".join(f"{factor:,}" for factor in (count, *factors.values(), sum(widths), itemsize)),
            count * prod(factors.values()) * sum(widths) * itemsize,
            source,
        )

    def all_gradients(self) -> Line:
        """Return the line of all gradients."""
        formula, values, bytes_ = self.trained.parameters_bytes()
        return Line(
            "gradients of all trained weights",
            formula,
            values,
            bytes_,
            f"torch: a gradient has the dtype of its weight, {self.trained.dtypes()}",
        )

    def optimizer_states(self) -> Iterator[Line]:
        """Yield the optimizer states on the device."""
        return self._optimizer_states().lines()

    def optimizer_remark(self) -> str:
        """Return a remark about states that the lines do not show; empty if they show all."""
        return self._optimizer_states().remark()

    def _optimizer_states(self) -> OptimizerStates:
        return OptimizerStates(self.recipe.optim, self.tensors, self.backend)
