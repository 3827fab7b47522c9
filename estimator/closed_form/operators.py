"""torch's operators on sizes: what each allocates, what it saves for backward, and what its backward allocates.

As read in torch 2.13 (derivatives.yaml and the kernels) and bitsandbytes 0.50. Where CUDA and the CPU run different
kernels, `Backend` decides.
"""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.closed_form.autograd import Autocast, Broadcast, Gradients, Node, Tape, Tensor, promote
from lorabench.estimator.closed_form.sizes import (
    CHUNK,
    INDICES,
    ONE,
    PADDED_TOKENS,
    PAIRS,
    PARTS,
    SHIFTED_TOKENS,
    TOKENS,
    B,
    Monomial,
    S,
)
from lorabench.estimator.closed_form.work import (
    AttentionKernel,
    AttentionWork,
    ChunkedLoss,
    Dequantisation,
    Group,
    Product,
)
from lorabench.estimator.devices.backend import Backend

# What tensors are that are not simply an operation's result.
AGAIN = "dequantised again for backward"
LOG_SUM_EXP = "log-sum-exp of each row and head"
LOSS = "the loss itself"
SHIFTED_LABELS = "labels, shifted"
CHUNK_OF_LOGITS = "a chunk's logits"
CHUNK_OF_HIDDEN = "a chunk of hidden states, or of their gradient"
COPY_OF_HEAD = "copy of the head's weight or of its gradient"


class Operators:
    """The operators, on one tape."""

    def __init__(self, tape: Tape, kernels: Backend) -> None:
        self.tape = tape
        self.kernels = kernels

    @property
    def autocast(self) -> Autocast | None:
        """The autocast context, where it is active."""
        context = self.tape.autocast
        return context if context is not None and context.enabled else None

    # Elementwise

    def cast(self, x: Tensor, dtype: str, component: str = "temporaries") -> Tensor:
        """Return ``x`` in ``dtype``: itself where it is that already."""
        if x.dtype == dtype:
            return x
        tape, was = self.tape, x.dtype
        return tape.record("cast", (x,), lambda g, _: (tape.like(g, was),), (), lambda: tape.like(x, dtype, component))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b; ``b`` has a's shape, or fewer tokens, whose gradient is then a sum."""
        tape, dtype = self.tape, promote(a.dtype, b.dtype)
        tokens, features = b.tokens, b.features
        broadcast = tokens != a.tokens

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            return g.view(), tape.new(tokens, features, g.dtype) if broadcast else g.view()

        return tape.record("add", (a, b), backward, (), lambda: tape.like(a, dtype))

    def scale(self, x: Tensor) -> Tensor:
        """Return x times (or plus, or negated) a number."""
        tape, component = self.tape, _component(x)
        return tape.record(
            "scale",
            (x,),
            lambda g, _: (tape.like(g, component=component),),
            (),
            lambda: tape.like(x, component=component),
        )

    def shift(self, x: Tensor) -> Tensor:
        """Return x plus a number, whose backward passes the gradient on."""
        tape = self.tape
        return tape.record("shift", (x,), lambda g, _: (g.view(),), (), lambda: tape.like(x))

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a · b; ``b`` has a's shape, or is broadcast: one row, or one column."""
        tape, dtype = self.tape, promote(a.dtype, b.dtype)
        a_needs, b_needs = a.requires_grad, b.requires_grad
        broadcast = (b.tokens, b.features) != (a.tokens, a.features)
        tokens, features = b.tokens, b.features

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            to_a = tape.like(g) if a_needs else None
            if not b_needs:
                return to_a, None
            to_b = tape.like(g)
            return to_a, Broadcast(to_b, tokens, features) if broadcast else to_b

        saved = (*((b,) if a_needs else ()), *((a,) if b_needs else ()))
        return tape.record("multiply", (a, b), backward, saved, lambda: tape.like(a, dtype))

    def activation(self, x: Tensor) -> Tensor:
        """Return an elementwise function of x whose backward needs x (silu, gelu)."""
        tape = self.tape
        return tape.record("activation", (x,), lambda g, _: (tape.like(g),), (x,), lambda: tape.like(x))

    def tanh(self, x: Tensor) -> Tensor:
        """Return an elementwise function of x whose backward needs its result (tanh, rsqrt)."""
        tape, component = self.tape, _component(x)
        return tape.record(
            "tanh",
            (x,),
            lambda g, _: (tape.like(g, component=component),),
            (),
            lambda: tape.like(x, component=component),
            saved_output=True,
        )

    def power(self, x: Tensor) -> Tensor:
        """Return x to a power: backward forms the lower power, its multiple and the product, all alive at once.

        CUDA's autocast runs it in float32.
        """
        if self.autocast is not None and self.kernels == "cuda":
            x = self.cast(x, "float32")
        tape = self.tape

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            lower = tape.like(g)
            multiple = tape.like(g)
            product = tape.like(g)
            del lower, multiple
            return (product,)

        return tape.record("power", (x,), backward, (x,), lambda: tape.like(x))

    def mean_of_columns(self, x: Tensor, groups: int = 1) -> Tensor:
        """Return the mean of each token's features, or of each of the ``groups`` (heads) that they fall into."""
        tape, tokens, features = self.tape, x.tokens, x.features
        return tape.record(
            "mean_of_columns",
            (x,),
            lambda g, _: (tape.new(tokens, features, g.dtype),),
            (),
            lambda: tape.new(tokens, groups, x.dtype),
        )

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """Return x with dropout: CUDA keeps a mask of one byte an element, the CPU a scaled mask in x's dtype."""
        if probability == 0:
            return x
        tape, mask_dtype = self.tape, "bool" if self.kernels == "cuda" else x.dtype
        mask = tape.like(x, mask_dtype, name="dropout mask")
        return tape.record("dropout", (x,), lambda g, _: (tape.like(g),), (mask,), lambda: tape.like(x))

    # Parts and wholes

    def part(self, x: Tensor, features: int) -> Tensor:
        """Return a slice of the features, a view; backward fills a whole tensor with zeros and the slice's gradient."""
        tape, whole = self.tape, x.features
        if not x.requires_grad:
            return x.view(features)
        node = Node(tape, "part", lambda g, _: (tape.new(g.tokens, whole, g.dtype),), (x,), ())
        return x.view(features, node)

    def all_but_last(self, x: Tensor) -> Tensor:
        """Return all tokens but the last of each sequence, a view; backward fills a whole tensor as `part` does."""
        tape, features, component = self.tape, x.features, _component(x)
        node = Node(tape, "all_but_last", lambda g, _: (tape.new(TOKENS, features, g.dtype, component),), (x,), ())
        rest = x.view(node=node)
        rest.tokens = SHIFTED_TOKENS
        return rest

    def split(self, x: Tensor, *features: int) -> list[Tensor]:
        """Return views of consecutive features (chunk, split); backward joins their gradients."""
        tape, whole = self.tape, x.features
        if not x.requires_grad:
            return [x.view(part) for part in features]

        def backward(gradients: list[Tensor], _: list[Tensor]) -> Gradients:
            return (tape.new(gradients[0].tokens, whole, gradients[0].dtype),)

        node = Node(tape, "split", backward, (x,), (), outputs=len(features))
        return [x.view(part, node) for part in features]

    def join(self, *parts: Tensor) -> Tensor:
        """Return the parts side by side (cat); backward takes views."""
        tape, features = self.tape, [part.features for part in parts]

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            return tuple(g.view(width) for width in features)

        return tape.record(
            "join", parts, backward, (), lambda: tape.new(parts[0].tokens, sum(features), parts[0].dtype)
        )

    def copy(self, x: Tensor, component: str = "temporaries") -> Tensor:
        """Return a copy (contiguous, clone); backward passes the gradient on."""
        tape = self.tape
        return tape.record("copy", (x,), lambda g, _: (g.view(),), (), lambda: tape.like(x, component=component))

    # Matrix products

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        features: int,
        *,
        bias: Tensor | None = None,
        times: Monomial = ONE,
        component: str = "temporaries",
    ) -> Tensor:
        """Return x · weightᵀ (+ bias), of shape (tokens, ``features`` · ``times``)."""
        given = x  # the caller's tensor lives on beside its cast
        x = self._to_autocast(given)
        weight = self._to_autocast(weight)
        tape, tokens = self.tape, x.tokens
        x_needs, weight_needs = x.requires_grad, weight.requires_grad
        x_shape, x_times = (x.features, x.dtype), x.times
        weight_shape, weight_times = (weight.features, weight.dtype), weight.times
        group: Group = (
            "logits and loss" if component == "logits" else "linear layers" if weight_times is ONE else "adapters"
        )
        m, k, n = (1, tokens), (x_shape[0], x_times), (features, times)
        if tokens is ONE:  # the two factors of a weight
            m, k, n = (x_shape[0], ONE), (1, x_times), (weight_shape[0], ONE)
        dtype = x.dtype

        def forward() -> Tensor:
            with tape.working(Product(group, m, n, k, dtype)):
                return tape.new(tokens, features, dtype, component, times=times)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            to_x = to_weight = None
            if x_needs:
                with tape.working(Product(group, m, k, n, dtype)):
                    to_x = tape.new(tokens, *x_shape, times=x_times)
            if weight_needs:
                with tape.working(Product(group, n, k, m, dtype)):
                    to_weight = tape.new(ONE, *weight_shape, times=weight_times)
                to_weight.is_view = True  # of the product that it is the transpose of
            return to_x, to_weight, *to_bias(g)

        inputs: tuple[Tensor, ...] = (x, weight)
        to_bias: Callable[[Tensor], Gradients] = _no_bias
        if bias is not None:
            bias = self._to_autocast(bias)
            inputs = (x, weight, bias)
            to_bias = _bias_gradient(tape, bias)
            del bias
        saved = (*((x,) if weight_needs else ()), *((weight,) if x_needs else ()))
        return tape.record("linear", inputs, backward, saved, forward)

    def linear_4bit(self, x: Tensor, elements: int, features: int, compute_dtype: str, stored_dtype: str) -> Tensor:
        """Return bitsandbytes' product with a 4-bit weight of ``elements`` elements.

        The weight is dequantised into a copy for the product; none of it is saved. Forward takes the dtype of the
        product at once, backward goes through the dtype that the weight had before it was quantised. (Below some
        1536 tokens, depending on the GPU, a fused kernel spares the forward copy.)
        """
        given, was = x, x.dtype
        x = self.cast(given, compute_dtype)
        tape, in_features = self.tape, x.features
        m, k, n = (1, TOKENS), (in_features, ONE), (features, ONE)

        def dequantised(dtype: str) -> Tensor:
            again = tape.in_backward
            with tape.working(Dequantisation(elements, dtype)):
                absmax = tape.new(ONE, -(-elements // 64), "float32", name=AGAIN if again else "absmax, dequantised")
                weight = tape.new(ONE, elements, dtype, name=AGAIN if again else "dequantised weight")
            del absmax
            return weight

        def forward() -> Tensor:
            weight = dequantised(compute_dtype)
            with tape.working(Product("linear layers", m, n, k, compute_dtype)):
                product = tape.new(TOKENS, features, compute_dtype)
            del weight
            return product

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            weight = dequantised(stored_dtype)
            if g.dtype != stored_dtype:
                weight = tape.like(weight, g.dtype, name=AGAIN)
            with tape.working(Product("linear layers", m, k, n, g.dtype)):
                product = tape.new(TOKENS, in_features, g.dtype)
            del weight
            return (product,)

        return self.cast(tape.record("linear_4bit", (x,), backward, (), forward), was)

    def _to_autocast(self, x: Tensor) -> Tensor:
        context = self.autocast
        return x if context is None else context.cached(x, self.cast)

    # Lookups and norms

    def embedding(
        self,
        weight: Tensor,
        features: int,
        tokens: Monomial = TOKENS,
        scratch: tuple[Monomial, Monomial] = (INDICES, PARTS),
    ) -> Tensor:
        """Return ``tokens`` of the table ``weight``; the gradient is dense, as large as the table.

        CUDA works through ``scratch`` for many tokens: indices and parts of sums (`embedding_backward`).
        """
        tape, elements, dtype = self.tape, weight.features, weight.dtype

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            to_weight = tape.new(ONE, elements, dtype)
            held = []
            if self.kernels == "cuda":
                held = [tape.new(scratch[0], 1, "int64"), tape.new(scratch[1], features, "float32")]
            del held
            return (to_weight,)

        return tape.record("embedding", (weight,), backward, (), lambda: tape.new(tokens, features, dtype))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return torch's layer norm: it saves x and each row's float32 mean and deviation.

        CUDA's autocast runs it in float32; the CPU's leaves the dtype alone.
        """
        if self.autocast is not None and self.kernels == "cuda":
            x, weight, bias = (self.cast(t, "float32") for t in (x, weight, bias))
        tape, features, weight_dtype = self.tape, weight.features, weight.dtype
        x_needs, weight_needs = x.requires_grad, weight.requires_grad
        statistics_dtype = "float32" if self.kernels == "cuda" else x.dtype
        statistics = tape.new(x.tokens, 2, statistics_dtype, name="mean and deviation of each row")

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            to_x = tape.like(g) if x_needs else None
            if not weight_needs:
                return to_x, None, None
            return to_x, tape.new(ONE, features, weight_dtype), tape.new(ONE, features, weight_dtype)

        return tape.record("layer_norm", (x, weight, bias), backward, (x, weight, statistics), lambda: tape.like(x))

    def softmax(self, x: Tensor, dtype: str) -> Tensor:
        """Return softmax in ``dtype``, which saves its result.

        CUDA reads float16 as it is; any other input is copied into ``dtype`` first.
        """
        tape, was = self.tape, x.dtype
        if self.kernels == "cuda" and was == "float16" and dtype == "float32":
            return tape.record(
                "softmax", (x,), lambda g, _: (tape.like(g, was),), (), lambda: tape.like(x, dtype), saved_output=True
            )
        converted = self.cast(x, dtype)
        return tape.record(
            "softmax", (converted,), lambda g, _: (tape.like(g),), (), lambda: tape.like(converted), saved_output=True
        )

    # Attention

    def matmul(
        self, a: Tensor, b: Tensor, tokens: Monomial, features: int, *, copied: tuple[bool, bool] = (False, False)
    ) -> Tensor:
        """Return the product of two operands of attention, in autocast's dtype.

        ``copied``: which operands lie by token, so that heads and sequences make one dimension only in a copy.
        """
        first, second = self._to_autocast(a), self._to_autocast(b)
        if copied[0]:
            first = self.copy(first)
        if copied[1]:
            second = self.copy(second)
        return self.batched_product(first, second, tokens, features)

    def batched_product(self, a: Tensor, b: Tensor, tokens: Monomial, features: int) -> Tensor:
        """Return the batched product of two operands; it saves each for the other's gradient.

        Either queries times keys, whose result has a row for each pair of positions, or such scores times values.
        """
        tape, dtype = self.tape, a.dtype
        heads, width = (features, a.features) if tokens is PAIRS else (a.features, features)
        seq, each = (1, S), (width / heads, ONE)
        m, n, k = (seq, seq, each) if tokens is PAIRS else (seq, each, seq)
        batch = (heads, B)
        to_operands = (
            (Product("attention", m, k, n, dtype, batch), (a.tokens, a.features, a.dtype) if a.requires_grad else None),
            (Product("attention", k, n, m, dtype, batch), (b.tokens, b.features, b.dtype) if b.requires_grad else None),
        )

        def forward() -> Tensor:
            with tape.working(Product("attention", m, n, k, dtype, batch)):
                return tape.new(tokens, features, dtype)

        def backward(g: Tensor, _: list[Tensor]) -> Gradients:
            gradients: list[Tensor | None] = []
            for product, shape in to_operands:
                with tape.working(product):
                    gradients.append(tape.new(*shape) if shape else None)
            return tuple(gradients)

        saved = (*((a,) if b.requires_grad else ()), *((b,) if a.requires_grad else ()))
        return tape.record("batched_product", (a, b), backward, saved, forward)

    def flash_attention(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, kernel: AttentionKernel
    ) -> Tensor:
        """Return flash attention: it saves q, k, v, its output and each row's float32 log-sum-exp.

        Backward works through a float32 accumulator for q's gradient and, where heads share keys and values, through
        gradients for every head.
        """
        tape, dtype = self.tape, q.dtype
        q_features, kv_features = q.features, k.features
        head_dim = q_features // heads
        cuda = self.kernels == "cuda"
        work = AttentionWork(heads, kv_heads, head_dim, dtype, kernel, backward=False)
        lse = tape.new(TOKENS, heads, "float32", name=LOG_SUM_EXP)

        def forward() -> Tensor:
            with tape.working(work):
                return tape.new(TOKENS, q_features, dtype)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            with tape.working(work._replace(backward=True)):
                to_q, to_k, to_v = (tape.new(TOKENS, width, dtype) for width in (q_features, kv_features, kv_features))
                scratch = []
                if cuda:
                    padded = -(-head_dim // (32 if head_dim <= 128 else 64)) * (32 if head_dim <= 128 else 64)
                    scratch = [
                        tape.new(PADDED_TOKENS, heads, "float32"),
                        tape.new(PADDED_TOKENS, heads * padded, "float32"),
                    ]
                    if kv_heads != heads:
                        scratch += [tape.new(TOKENS, q_features, dtype), tape.new(TOKENS, q_features, dtype)]
            del scratch
            return to_q, to_k, to_v

        return tape.record("flash_attention", (q, k, v), backward, (q, k, v, lse), forward, saved_output=True)

    def efficient_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        """Return memory-efficient attention: it saves q, k, v, its output, each row's log-sum-exp, and the mask.

        A boolean mask becomes one to add, in the dtype of q, for every sequence of the batch. Backward accumulates
        q's gradient in float32, in blocks of 64 or 128 tokens.
        """
        tape, dtype, features = self.tape, q.dtype, q.features
        head_dim = features // heads
        width = 64 if head_dim <= 64 or head_dim > 128 else 128
        padded = -(-head_dim // width) * width
        work = AttentionWork(heads, heads, head_dim, dtype, "sdpa" if mask is None else "masked", backward=False)
        lse = tape.new(TOKENS, heads, "float32", name=LOG_SUM_EXP)
        added = () if mask is None else (tape.new(PAIRS, 1, dtype, name="mask to add"),)

        def forward() -> Tensor:
            with tape.working(work):
                return tape.new(TOKENS, features, dtype)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            with tape.working(work._replace(backward=True)):
                to_q, to_k, to_v = (tape.new(TOKENS, features, dtype) for _ in range(3))
                scratch = [tape.new(TOKENS, heads, "float32"), tape.new(PADDED_TOKENS, heads * padded, "float32")]
            del scratch
            return to_q, to_k, to_v

        saved = (q, k, v, lse, *added)
        return tape.record("efficient_attention", (q, k, v), backward, saved, forward, saved_output=True)

    def repeat_heads(self, x: Tensor, times: int) -> Tensor:
        """Return keys or values repeated for each query head that shares them; backward sums them up."""
        if times == 1:
            return x
        tape, features = self.tape, x.features
        return tape.record(
            "repeat_heads",
            (x,),
            lambda g, _: (tape.new(TOKENS, features, g.dtype),),
            (),
            lambda: tape.new(TOKENS, features * times, x.dtype),
        )

    # Loss

    def labels(self, tokens: Monomial = TOKENS) -> Tensor:
        """Return labels, one for each row."""
        return self.tape.new(tokens, 1, "int64", name=SHIFTED_LABELS)

    def cross_entropy(self, logits: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        """Return the mean cross-entropy of float32 ``logits`` with ``labels``; none where they are a view of the batch.

        It saves the log-probabilities and the labels; backward makes the gradients of the former and of the logits.
        """
        tape = self.tape

        def backward_of_mean(g: Tensor, saved: list[Tensor]) -> Gradients:
            return (tape.like(saved[0], component="logits"),)

        log_probabilities = tape.record(
            "cross_entropy",
            (logits,),
            lambda g, _: (tape.like(g, component="logits"),),
            (),
            lambda: tape.like(logits, component="logits"),
            saved_output=True,
        )
        return tape.record(
            "cross_entropy",
            (log_probabilities,),
            backward_of_mean,
            (log_probabilities, *labels),
            lambda: tape.new(ONE, 1, "float32", name=LOSS),
        )

    def fused_linear_cross_entropy(self, x: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
        """Return the mean cross-entropy of x · weightᵀ as Liger makes it, a chunk of tokens after the other.

        Forward makes the gradients, from logits that become their own; backward hands them out. Chunks are alike, so
        that one stands for all, or two where autocast keeps a copy of the weight from the first.
        """
        tape, trains = self.tape, weight.requires_grad
        operation = "fused_linear_cross_entropy"
        node = Node(tape, operation, lambda _, saved: (saved[0], saved[1] if trains else None), (x, weight), ())
        padded, shifted = (tape.new(TOKENS, 1, "int64", name=SHIFTED_LABELS) for _ in range(2))
        to_x = tape.like(x, component="activations", name="gradient of the last hidden state")
        kept = weight.leaf is not None and not weight.leaf.accumulating
        to_weight = None
        if trains:
            component = "gradients" if kept else "activations"
            to_weight = tape.like(weight, component=component, name="gradient of the head's weight")
        losses = tape.new(TOKENS, 1, "float32", name="loss of each token")
        counted = tape.new(TOKENS, 1, "bool", name="which tokens count")
        dtype = x.dtype if self.autocast is None else self.autocast.dtype
        in_place = x.dtype == weight.dtype == dtype
        shared = tape.new(CHUNK, vocabulary, dtype, "logits", name=CHUNK_OF_LOGITS) if in_place else None
        chunks = 1 if in_place or vocabulary <= x.features else 2
        with tape.working(ChunkedLoss(x.features, vocabulary, dtype, trains)):
            for _ in range(chunks):
                if shared is None:
                    logits = self._chunk_of_logits(x, weight, vocabulary, dtype)
                if to_weight is not None:
                    self._add_chunk_product(to_weight, x, dtype)
                if shared is None:
                    del logits
        del padded, shifted, losses, counted, shared
        node.saved = tape.save((to_x,) if to_weight is None else (to_x, to_weight))
        loss = tape.new(ONE, 1, "float32", name=LOSS)
        loss.node = node
        return loss

    def _chunk_of_logits(self, x: Tensor, weight: Tensor, vocabulary: int, dtype: str) -> Tensor:
        """Return a chunk's logits, after the product that makes them and the one with their gradient."""
        tape = self.tape

        def cast(whole: Tensor, to: str) -> Tensor:
            return whole if whole.dtype == to else tape.like(whole, to, name=f"{to} {COPY_OF_HEAD}")

        def cast_chunk() -> Tensor | None:
            return None if x.dtype == dtype else tape.new(CHUNK, x.features, dtype, name=CHUNK_OF_HIDDEN)

        second, first = cast(weight, dtype), cast_chunk()  # of its transpose, a view: autocast keeps it not
        logits = tape.new(CHUNK, vocabulary, dtype, "logits", name=CHUNK_OF_LOGITS)
        del second, first
        second = self.autocast.cached(weight, cast) if self.autocast is not None else weight
        product = tape.new(CHUNK, x.features, dtype, name=CHUNK_OF_HIDDEN)
        del second, product
        return logits

    def _add_chunk_product(self, to_weight: Tensor, x: Tensor, dtype: str) -> None:
        """Add a chunk's share to the weight's gradient: within the product, or after it and a float32 copy."""
        tape = self.tape
        if dtype != "float32" and to_weight.dtype in ("float32", dtype):
            if x.dtype != dtype:
                tape.new(CHUNK, x.features, dtype, name=CHUNK_OF_HIDDEN)
            return
        chunk = tape.new(CHUNK, x.features, dtype, name=CHUNK_OF_HIDDEN) if x.dtype != dtype else None
        product = tape.like(to_weight, dtype, name=f"{dtype} {COPY_OF_HEAD}")
        del chunk
        if dtype != "float32":
            tape.like(product, "float32", name=f"float32 {COPY_OF_HEAD}")


def _component(x: Tensor) -> str:
    """Return the component of what an elementwise operation makes of x: of logits it makes logits."""
    return "logits" if x.block is not None and x.block.component == "logits" else "temporaries"


def _no_bias(g: Tensor) -> Gradients:
    return ()


def _bias_gradient(tape: Tape, bias: Tensor) -> Callable[[Tensor], Gradients]:
    features, needs = bias.features, bias.requires_grad
    return lambda g: (tape.new(ONE, features, g.dtype) if needs else None,)
