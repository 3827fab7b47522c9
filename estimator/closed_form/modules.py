"""Linear layers with adapters and 4-bit weights, norms, rotary positions, attention: transformers' and peft's modules.

As in transformers 5.23 and peft 0.21. The order of operations and the lifetimes of local variables are theirs, because
they determine which tensors are alive at the peak.
"""

from __future__ import annotations

from lorabench.estimator.closed_form.adapters import adapted_linear
from lorabench.estimator.closed_form.autograd import Leaf, Node, Tensor
from lorabench.estimator.closed_form.operators import Operators
from lorabench.estimator.closed_form.sizes import ONE, PAIRS, TOKENS, R, S
from lorabench.estimator.devices.attention_kernel import SdpaKernel, sdpa_kernel
from lorabench.estimator.methods.base import AdapterTensor
from lorabench.estimator.models.spec import Layers, Linear
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each (S, rotary features)."""


class Weights:
    """The dtype of the model's parameters under a recipe, and whether they train."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.quantized_dtype = recipe.dtype
        """The dtype of dequantised 4-bit weights."""

    def base(self, name: str, elements: int) -> Tensor:
        """Return parameter ``name`` of the base model with ``elements`` elements; it trains in full fine-tuning."""
        leaf = self._leaf() if self.recipe.adapter is None else None
        return Tensor(None, ONE, elements, self.recipe.dtype_of(name), leaf=leaf)

    def saved(self, name: str, elements: int) -> Tensor:
        """Return the trained copy of parameter ``name`` with ``elements`` elements (peft's modules_to_save)."""
        return Tensor(None, ONE, elements, self.recipe.dtype_of(name), leaf=self._leaf())

    def adapter(self, tensor: AdapterTensor) -> Tensor:
        """Return a tensor of an adapter. If it is ranked, its elements are per unit of the rank."""
        times, elements = (R, tensor.elements // (self.recipe.rank or 1)) if tensor.ranked else (ONE, tensor.elements)
        return Tensor(None, ONE, elements, self.recipe.trained_dtype, times=times, leaf=self._leaf())

    def _leaf(self) -> Leaf:
        return Leaf(accumulating=self.recipe.gradient_accumulation > 1)


class Modules:
    """The modules of one decoder layer, or of the model around the layers."""

    def __init__(
        self,
        op: Operators,
        resolved: ResolvedRecipe,
        layers: Layers,
        mask: Tensor | None,
    ) -> None:
        recipe = resolved.recipe
        weights = Weights(recipe)
        self.op = op
        self.spec = resolved.spec
        self.recipe = recipe
        self.mask = mask
        self.kind = layers.kind
        self.heads = resolved.spec.num_attention_heads
        self.kv_heads = resolved.spec.num_key_value_heads
        self.head_dim = self.value_dim = resolved.spec.head_dim
        self.shapes = {weight.name: weight.shape for weight in layers.weights}
        self.compute_dtype = recipe.compute_dtype
        self.quantized_dtype = weights.quantized_dtype
        self.linears: dict[str, Linear] = {linear.name: linear for linear in layers.linears}
        self.weights: dict[str, Tensor] = {
            weight.name: weights.base(weight.name, weight.parameters) for weight in layers.weights
        }
        self.adapters: dict[str, tuple[Tensor, ...]] = {}
        for linear in layers.linears:
            if not self._in_four_bits(linear):
                self.weights[linear.name] = weights.base(linear.name, linear.in_features * linear.out_features)
            self.shapes[f"{linear.name}.weight"] = linear.out_features, linear.in_features
            if linear.bias:
                self.shapes[f"{linear.name}.bias"] = (linear.out_features,)
                self.weights[f"{linear.name}.bias"] = weights.base(linear.name, linear.out_features)
            if recipe.adapter is not None and linear.name in resolved.target_modules:
                self.adapters[linear.name] = tuple(map(weights.adapter, recipe.adapter.tensors(linear)))
        for weight in layers.adapted_experts:
            tensors = () if recipe.adapter is None else recipe.adapter.expert_tensors(weight, resolved.spec.model_type)
            if tensors:
                self.adapters[weight.name] = tuple(map(weights.adapter, tensors))

    @property
    def query_width(self) -> int:
        """Features of a token's queries, over all heads."""
        return self.spec.num_attention_heads * self.spec.head_dim

    @property
    def key_width(self) -> int:
        """Features of a token's keys, over all heads. Its values have the same number."""
        return self.spec.num_key_value_heads * self.spec.head_dim

    @property
    def rotary_features(self) -> int:
        """Features of each head with rotary positions."""
        part = self.spec.config["rope_parameters"].get("partial_rotary_factor", 1.0)
        return int(self.spec.head_dim * part)

    # Embeddings and positions

    def embedding(self, *, scaled: bool = False) -> Tensor:
        """Return the tokens' rows of the embedding table, (B·S, h). ``scaled``: the embedding module scales them."""
        spec, op = self.spec, self.op
        with op.tape.scope("embedding"):
            embedded = op.embedding(self.weights[spec.embeddings[0].name], spec.hidden_size)
            if scaled:
                embedded = op.scale(embedded)
        return self.as_input(embedded)

    def as_input(self, embedded: Tensor) -> Tensor:
        """Return the output of the embedding module, (B·S, h), which the first layer gets."""
        if self.recipe.gradient_checkpointing and not embedded.requires_grad:
            # transformers makes the embedding's output require a gradient (`enable_input_require_grads`), so that
            # checkpointed layers have an input with one. Autograd keeps the output and its gradient to the end.
            embedded.leaf = Leaf(holds=embedded.block)
            if self.recipe.keep_outputs:  # the outputs refer to the loss, and the loss to the graph
                self.op.tape.outputs.append(embedded.without_history())
                self.op.tape.leaf_of_outputs = embedded.leaf
        return embedded

    def rotary_tables(self, dtype: str) -> Rotary:
        """Return cosines and sines of every position, (S, rotary features), computed in float32 and stored in
        ``dtype``."""
        op, tape, features = self.op, self.op.tape, self.rotary_features
        with tape.scope("rotary tables"):
            frequencies = tape.new(S, features // 2, "float32", "buffers")
            angles = tape.new(S, features, "float32", "buffers")
            cos, sin = self._scaled_table(), self._scaled_table()
            tables = op.cast(cos, dtype, "buffers"), op.cast(sin, dtype, "buffers")
            del frequencies, angles
            return tables

    def _scaled_table(self) -> Tensor:
        """Return cosines or sines times a number, in a tensor of their own."""
        table = self.op.tape.new(S, self.rotary_features, "float32", "buffers")
        scaled = self.op.tape.new(S, self.rotary_features, "float32", "buffers")
        del table
        return scaled

    # Linear layers

    def linear(self, name: str, x: Tensor, *, apart: bool = False) -> Tensor:
        """Return the output of linear layer ``name`` for x, with its adapter if it has one.

        ``apart``: the class of the layer adds the bias in a step of its own.
        """
        with self.op.tape.scope("linear", name):
            if name not in self.adapters:
                return self._base(name, x, apart=apart)
            assert self.recipe.adapter is not None
            return adapted_linear(
                self.op,
                self.recipe.adapter,
                self.linears[name],
                self.adapters[name],
                lambda x: self._base(name, x, apart=apart),
                x,
                quantized=self._in_four_bits(self.linears[name]),
            )

    def _in_four_bits(self, linear: Linear) -> bool:
        return self.recipe.quantization is not None and linear.quantizable

    def _base(self, name: str, x: Tensor, *, apart: bool) -> Tensor:
        linear = self.linears[name]
        quantization = self.recipe.quantization
        if quantization is not None and linear.quantizable:
            return self.op.linear_4bit(
                x,
                linear.in_features * linear.out_features,
                linear.out_features,
                self.compute_dtype,
                self.quantized_dtype,
                double_quant=quantization.double_quant,
                keeps_input=self.recipe.keeps_inputs,
            )
        bias = self.weights.get(f"{name}.bias")
        if apart and bias is not None:
            product = self.op.linear(x, self.weights[name], linear.out_features)
            return self.op.add(product, bias)
        return self.op.linear(x, self.weights[name], linear.out_features, bias=bias)

    # Norms

    def rms_norm(self, name: str, x: Tensor, groups: int = 1) -> Tensor:
        """Return Llama's RMS norm of x, in its shape. It runs in float32, over each of ``groups`` heads separately."""
        op = self.op
        with op.tape.scope("norm", name):
            x32 = op.cast(x, "float32")
            variance = op.mean(op.power(x32), groups)
            x32 = op.multiply(x32, op.rsqrt(op.shift(variance)))
            return op.multiply(self.weights[f"{name}.weight"], op.cast(x32, x.dtype))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        """Return torch's layer norm of x, in its shape."""
        with self.op.tape.scope("norm", name):
            return self.op.layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    # Attention

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Return x with rotary positions: x · cos + rotate_half(x) · sin."""
        op = self.op
        cos, sin = rotary
        with op.tape.scope("rotary positions"):
            return op.add(op.multiply(x, cos), op.multiply(self._rotate_half(x), sin))

    def rotary_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of each head that are rotated, (B·S, H·rotary), and the others."""
        op = self.op
        rotated = x.features * self.rotary_features // self.head_dim
        with op.tape.scope("rotary positions"):
            # A slice of all features is no operation.
            first = x if rotated == x.features else op.part(x, rotated)
            return first, op.part(x, x.features - rotated)

    def join(self, rotated: Tensor, others: Tensor) -> Tensor:
        """Return a new tensor of each head's ``rotated`` features and the ``others``."""
        with self.op.tape.scope("rotary positions"):
            return self.op.join(rotated, others)

    def _rotate_half(self, x: Tensor) -> Tensor:
        half = x.features // 2
        first = self.op.part(x, half)
        second = self.op.part(x, half)
        return self.op.join(self.op.scale(second), first)

    def by_heads(self, x: Tensor, heads: int, *, repeated: bool = False, rotated: bool = False) -> Tensor:
        """Return x (B·S, ``heads`` · d) as a view by heads, for attention.

        Backward copies its gradient if the gradient's memory layout is (B, H, S, d) and not (B, S, H, d). That is so if
        attention consists of single operators, and if x is ``repeated`` for all query heads. It is also so if x is
        ``rotated``, since gradients of slices have that layout.
        """
        if heads == 1 or not x.requires_grad:
            return x
        shared = self.recipe.attn_implementation != "sdpa" or self._shares_keys
        times = self.heads // self.kv_heads
        if not (rotated or self.single_operators(x.dtype) or (repeated and not shared and times > 1)):
            return x
        with self.op.tape.scope("attention"):
            return self._with_copied_gradient(x)

    def _with_copied_gradient(self, x: Tensor) -> Tensor:
        """Return a view of x whose gradient has to be copied to be viewed as x."""
        tape = self.op.tape
        # view: grad.reshape(self.sizes())
        return x.view(node=Node(tape, "copy", lambda g, _: (tape.like(g),), (x,), ())) if x.requires_grad else x

    @property
    def _shares_keys(self) -> bool:
        """Whether fused attention gets each key head once, not once for each query head (`use_gqa_in_sdpa`)."""
        same_width = self.head_dim == self.value_dim <= 256
        return (
            self.mask is None
            and same_width
            and not (self.recipe.rules.repeats_keys and self.recipe.attn_implementation == "sdpa")
        )

    def single_operators(self, dtype: str) -> bool:
        """Return whether attention of queries in ``dtype`` is eager or torch's math kernel."""
        if self.recipe.attn_implementation != "sdpa":
            return self.recipe.attn_implementation == "eager"
        kv_heads = self.kv_heads if self._shares_keys else self.heads
        return self._sdpa_kernel(self.compute_dtype if self.op.autocast else dtype, kv_heads, 0.0) == "math"

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        dropout: float = 0.0,
        joined: bool = False,
        float32_softmax: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs of all heads, (B·S, H·d), and the probabilities, (B·S·S, H), if attention is eager.

        Recipe, mask and dtype select the kernel. The layer keeps the probabilities until it returns.

        ``joined``: queries and keys come from torch.cat, so their memory layout is (B, H, S, d) and not (B, S, H, d).
        Eager attention then copies neither. Flash attention's output has the layout of the queries, so it is copied.
        ``float32_softmax``: the family requests it for eager attention.
        """
        if self.op.tape.evaluating:
            dropout = 0.0
        with self.op.tape.scope("attention"):
            if self.recipe.attn_implementation == "eager":
                return self._eager(q, k, v, dropout, joined, float32_softmax)
            return self._fused(q, k, v, dropout, joined), None

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, joined: bool) -> Tensor:
        op = self.op
        implementation = self.recipe.attn_implementation
        heads, kv_heads = self.heads, self.kv_heads
        if not self._shares_keys:
            # With a mask, transformers repeats keys and values for all heads, and older ones without a mask too.
            k, v = (op.repeat_heads(x, heads // kv_heads, alone=kv_heads == 1) for x in (k, v))
        if self.recipe.rules.contiguous and implementation == "sdpa" and not joined:
            repeated = kv_heads not in (1, heads)  # repetition has copied keys and values already
            q, joined = op.copy(q), True
            k, v = (x if repeated else op.copy(x) for x in (k, v))
        kv_heads = kv_heads if self._shares_keys else heads
        if implementation == "flash_attention_2":
            if op.autocast is not None:
                q, k, v = (op.cast(t, self.compute_dtype) for t in (q, k, v))
            q, k, v = (op.cast(t, self._flash_dtype(t.dtype)) for t in (q, k, v))
            output = op.flash_attention(q, k, v, heads, kv_heads, "flash_attention_2", by_head=joined)
            return op.copy(output) if joined else output
        output, by_token = self.sdpa(q, k, v, kv_heads, dropout, joined)
        return output if by_token else op.copy(output)

    def sdpa(
        self, q: Tensor, k: Tensor, v: Tensor, kv_heads: int, dropout: float, joined: bool, *, gqa: bool = True
    ) -> tuple[Tensor, bool]:
        """Return the output of scaled_dot_product_attention, and whether its memory layout is (B, S, H, d).

        ``gqa``: its option enable_gqa, without which keys have as many heads as queries, or one.

        Python frees the arguments that autocast has cast when the function returns, so the cast belongs in here.
        """
        op, heads = self.op, self.heads
        if op.autocast is not None:
            v, k, q = (op.cast(t, self.compute_dtype) for t in (v, k, q))
        kernel = self._sdpa_kernel(q.dtype, kv_heads, dropout)
        if kernel == "math":
            return self._math(q, k, v, dropout, joined, gqa=gqa), False
        if kernel == "cudnn":
            return op.cudnn_attention(q, k, v, heads, kv_heads, self.mask), not joined
        if kernel == "efficient":
            return op.efficient_attention(q, k, v, heads, self.mask), True  # (B, S, H, d) for any layout of the queries
        return op.flash_attention(q, k, v, heads, kv_heads, "sdpa", by_head=joined), not joined

    def _sdpa_kernel(self, dtype: str, kv_heads: int, dropout: float) -> SdpaKernel:
        if self.op.backend == "cpu":
            return "math" if dropout else "flash"
        return sdpa_kernel(
            dtype=dtype,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            heads=self.heads,
            kv_heads=kv_heads,
            masked=self.mask is not None,
            dropout=dropout,
            compute_capability=self.op.compute_capability,
        )

    def _flash_dtype(self, dtype: str) -> str:
        """Return the dtype that flash_attn runs in: transformers casts float32 to the dtype of the weights."""
        return self.quantized_dtype if dtype == "float32" else dtype

    def _eager(
        self, q: Tensor, k: Tensor, v: Tensor, dropout: float, joined: bool, float32_softmax: bool
    ) -> tuple[Tensor, Tensor]:
        op, heads = self.op, self.heads
        times = heads // self.kv_heads
        if self.kv_heads == 1 and self.recipe.batch_size == 1:
            times = 1  # with one key head and one sequence, repetition is a view
        hidden = q.features
        keys = op.repeat_heads(k, times)
        values = op.repeat_heads(v, times)
        # matmul merges sequences and heads into one dimension. That is a view of a single sequence, and of joined or
        # repeated heads, whose layout is (B, H, S, d); else it is a copy.
        by_token = self.recipe.batch_size > 1
        turned = by_token and not joined
        scores = op.scale(op.matmul(q, keys, PAIRS, heads, copied=(turned, turned and times == 1)))
        if self.spec.caps_scores:
            scores = op.scale(scores)
            scores = op.tanh(scores)
            scores = op.scale(scores)
        assert self.mask is not None
        # The mask has the dtype of the embedding's output, which may promote the scores.
        scores = op.add(scores, self.mask)
        # Autocast runs softmax in float32.
        precision = "float32" if float32_softmax or op.autocast is not None else scores.dtype
        probabilities = op.softmax(scores, precision)
        if not float32_softmax:
            scores = probabilities  # GPT-2 casts them in a statement of its own, so its scores are gone by then
        scores = op.cast(probabilities, q.dtype)
        del probabilities
        scores = op.dropout(scores, dropout)
        output = op.matmul(scores, values, TOKENS, hidden, copied=(False, by_token and times == 1))
        # With several sequences the gradient has the layout (B, S, H, d).
        return op.copy(self._with_copied_gradient(output) if by_token else output), scores

    def _math(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, joined: bool, *, gqa: bool) -> Tensor:
        """Return the output of torch's math kernel, (B, H, S, d): all in float32, with the whole matrix of scores.

        Its matmuls copy tensors from layout (B, S, H, d) to (B, H, S, d), except for a single sequence. Repeated heads
        have that layout already. The kernel also returns the probabilities, in the dtype of q
        (`_scaled_dot_product_attention_math`).
        """
        op = self.op
        by_token = self.recipe.batch_size > 1
        times = self.heads // self.kv_heads
        if not gqa and not by_token:
            times = 1  # matmul expands a single key head, which is a view of a single sequence
        # In C++ a variable lives until the kernel returns, so these are freed together.
        q32, k32, v32 = (op.cast(x, "float32") for x in (q, k, v))
        queries = op.scale(q32)
        mask = self._additive_mask()
        keys, values = op.repeat_heads(k32, times), op.repeat_heads(v32, times)
        scaled = op.scale(keys)
        attention = op.batched_matmul(
            op.copy(queries) if by_token and not joined else queries,
            op.copy(scaled) if by_token and not joined and times == 1 else scaled,
            PAIRS,
            self.heads,
        )
        del scaled
        attention = op.safe_softmax(attention)
        attention = op.dropout(attention, dropout)
        output = op.batched_matmul(
            attention, op.copy(values) if by_token and times == 1 else values, TOKENS, self.heads * self.value_dim
        )
        # The gradient of several sequences comes by token.
        output = op.cast(self._with_copied_gradient(output) if by_token else output, q.dtype)
        probabilities = op.cast(attention, q.dtype)
        del probabilities, mask
        return output

    def _additive_mask(self) -> Tensor:
        """Return the mask that the math kernel adds to the scores: the causal one, unless it is given another."""
        tape = self.op.tape
        if self.mask is not None:
            added = tape.new(self.mask.tokens, 1, "float32", name="mask")
            hidden = tape.new(self.mask.tokens, 1, "bool", name="mask")
            del hidden
            return added
        ones = tape.new(S * S, 1, "bool", name="causal mask")
        lower = tape.new(S * S, 1, "bool", name="causal mask")
        del ones
        added = tape.new(S * S, 1, "float32", name="causal mask")
        del lower
        return added

    # Feed-forward

    def gated_mlp(self, x: Tensor) -> Tensor:
        """Return down(act(gate(x)) · up(x)), (B·S, h)."""
        op = self.op
        with op.tape.scope("feed-forward"):
            return self.linear(
                "mlp.down_proj",
                op.multiply(op.activation(self.linear("mlp.gate_proj", x)), self.linear("mlp.up_proj", x)),
            )
