"""Fused attention kernels, which never store the scores."""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.closed_form.autograd import Gradients, Tensor
from lorabench.estimator.closed_form.operators.elementwise import Elementwise
from lorabench.estimator.closed_form.sizes import ATTENTION_BLOCKS, PADDED_TOKENS, PAIRS, TOKENS
from lorabench.estimator.closed_form.work import AttentionKernel, AttentionWork

LOG_SUM_EXP = "log-sum-exp of each token and head"


class Attention(Elementwise):
    """The kernels of scaled dot-product attention."""

    def flash_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        kv_heads: int,
        kernel: AttentionKernel,
        *,
        by_head: bool = False,
    ) -> Tensor:
        """Return flash attention of q (B·S, H·d), k and v (B·S, kv), in q's shape.

        It saves q, k, v, its output, and the float32 log-sum-exp of each token and head. Backward allocates a float32
        accumulator for q's gradient. If heads share keys and values, it also allocates gradients of k and v for every
        query head. ``by_head``: queries and output have the memory layout (B, H, S, d), so backward copies the output
        (`_flash_attention_backward`).
        """
        tape, dtype = self.tape, q.dtype
        q_features, kv_features = q.features, k.features
        head_dim = q_features // heads
        cuda = self.backend == "cuda"
        work = AttentionWork(heads, kv_heads, head_dim, dtype, kernel, backward=False)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # _scaled_dot_product_flash_attention: query, key, value:
            # _scaled_dot_product_flash_attention_backward(grad, query, key, value, output, logsumexp, …)
            with tape.working(work._replace(backward=True)):
                scratch = [tape.new(TOKENS, q_features, dtype, name="output by token")] if cuda and by_head else []
                to_q, to_k, to_v = (tape.new(TOKENS, width, dtype) for width in (q_features, kv_features, kv_features))
                if cuda:
                    # mha_bwd of flash_attn: softmax_d, dq_accum; for grouped heads also dk_expanded, dv_expanded.
                    block = 32 if head_dim <= 128 else 64
                    padded = -(-head_dim // block) * block
                    scratch += [tape.new(PADDED_TOKENS, width, "float32") for width in (heads, heads * padded)]
                    if kv_heads != heads:
                        scratch += [tape.new(TOKENS, q_features, dtype), tape.new(TOKENS, q_features, dtype)]
            del scratch
            return to_q, to_k, to_v

        return self._kernel("flash_attention", (q, k, v), work, backward)

    def efficient_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        """Return memory-efficient attention of q and k, both (B·S, H·d), and v (B·S, H·d'), in the shape of v.

        It saves q, k, v, its output, the float32 log-sum-exp of each token and head, and the mask. torch first converts
        a boolean mask to an additive one, (B·S·S, 1), in the dtype of q (`convert_boolean_attn_mask`). Backward
        accumulates q's gradient in float32, in whole blocks of 64 tokens × 64 features, 128 × 128 for heads above 64,
        128 × 64 for heads above 128. Each block has 16 bytes of locks (`kernel_backward.h`).
        """
        tape, dtype, features, value_features = self.tape, q.dtype, q.features, v.features
        head_dim = features // heads
        rows, width = (64, 64) if head_dim <= 64 else (128, 128) if head_dim <= 128 else (128, 64)
        block = -(-head_dim // width) * (rows * width + 4)
        work = AttentionWork(heads, heads, head_dim, dtype, "sdpa" if mask is None else "masked", backward=False)
        added = self._mask_to_add(mask, dtype)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # _scaled_dot_product_efficient_attention: query, key, value, attn_bias:
            # _scaled_dot_product_efficient_attention_backward(grad, query, key, value, attn_bias, output, …)
            with tape.working(work._replace(backward=True)):
                to_q, to_k, to_v = (tape.new(TOKENS, each, dtype) for each in (features, features, value_features))
                scratch = [
                    tape.new(TOKENS, heads, "float32"),
                    tape.new(ATTENTION_BLOCKS[rows], heads * block, "float32"),
                ]
            del scratch
            return to_q, to_k, to_v

        return self._kernel("efficient_attention", (q, k, v), work, backward, added, width=value_features)

    def cudnn_attention(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, mask: Tensor | None
    ) -> Tensor:
        """Return cuDNN's attention of q (B·S, H·d), k and v (B·S, kv), in q's shape and memory layout.

        It saves q, k, v, its output, the float32 log-sum-exp of each token and head, and the mask in the dtype of q.
        Backward has one float32 workspace, for q's gradient and one number per token and head (cuDNN's frontend,
        `sdpa_bwd`).
        """
        tape, dtype, features = self.tape, q.dtype, q.features
        kv_features = k.features
        kernel: AttentionKernel = "sdpa" if mask is None else "masked"
        work = AttentionWork(heads, kv_heads, features // heads, dtype, kernel, backward=False)
        added = self._mask_to_add(mask, dtype)

        def backward(g: Tensor, saved: list[Tensor]) -> Gradients:
            # _scaled_dot_product_cudnn_attention_backward(grad, query, key, value, output, logsumexp, …)
            with tape.working(work._replace(backward=True)):
                to_q, to_k, to_v = (tape.new(TOKENS, width, dtype) for width in (features, kv_features, kv_features))
                workspace = tape.new(TOKENS, features + heads, "float32")
            del workspace
            return to_q, to_k, to_v

        return self._kernel("cudnn_attention", (q, k, v), work, backward, added)

    def _mask_to_add(self, mask: Tensor | None, dtype: str) -> tuple[Tensor, ...]:
        """Return torch's additive mask for a boolean mask, (B·S·S, 1) in ``dtype``, or another mask as it is; empty
        without a mask."""
        if mask is not None and mask.dtype != "bool":
            return (mask,)
        return () if mask is None else (self.tape.new(PAIRS, 1, dtype, name="mask to add"),)

    def _kernel(
        self,
        name: str,
        qkv: tuple[Tensor, Tensor, Tensor],
        work: AttentionWork,
        backward: Callable[[Tensor, list[Tensor]], Gradients],
        added: tuple[Tensor, ...] = (),
        *,
        width: int | None = None,
    ) -> Tensor:
        """Return the output of a kernel that runs ``work``, in the shape of its queries or with ``width`` features.

        It saves queries, keys, values and ``added``, its output, and the log-sum-exp, (B·S, H).
        """
        tape, features, dtype = self.tape, qkv[0].features, qkv[0].dtype
        log_sum_exp: list[Tensor] = []

        def forward() -> Tensor:
            with tape.working(work):
                output = tape.new(TOKENS, width or features, dtype)
            log_sum_exp.append(tape.new(TOKENS, work.heads, "float32", name=LOG_SUM_EXP))
            return output

        saved = (*qkv, *added)
        return tape.record(name, qkv, backward, saved, forward, saved_after=log_sum_exp, saved_output=True)
