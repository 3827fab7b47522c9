"""The forward pass of each architecture, as transformers 5.23 writes it, from token ids to the last hidden state.

Local variables are named and held as there: a tensor that a caller still holds is a tensor in memory.
"""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.closed_form.autograd import Tape, Tensor
from lorabench.estimator.closed_form.modules import Modules, Rotary
from lorabench.estimator.closed_form.operators import Operators
from lorabench.estimator.closed_form.sizes import S

Layer = Callable[[Modules, Tensor, Rotary | None], Tensor]


def rotary_tables(tape: Tape, op: Operators, columns: int, dtype: str) -> Rotary:
    """Return cosines and sines for every position, ``columns`` wide, computed in float32 and kept in ``dtype``."""
    frequencies = tape.new(S, columns // 2, "float32", "buffers")
    angles = tape.new(S, columns, "float32", "buffers")
    del frequencies
    cos = tape.new(S, columns, "float32", "buffers")
    sin = tape.new(S, columns, "float32", "buffers")
    del angles
    return op.cast(cos, dtype, "buffers"), op.cast(sin, dtype, "buffers")


def llama(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of Llama, Mistral, Qwen2, Qwen3."""
    residual = hidden
    hidden = m.rms_norm("input_layernorm", hidden)
    hidden = grouped_attention(m, hidden, rotary)
    hidden = m.op.add(residual, hidden)
    residual = hidden
    hidden = m.rms_norm("post_attention_layernorm", hidden)
    hidden = m.gated_mlp(hidden)
    return m.op.add(residual, hidden)


def grouped_attention(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """Rotary attention with separate projections, normed per head where the architecture does."""
    assert rotary is not None
    q = m.linear("self_attn.q_proj", hidden)
    if "self_attn.q_norm.weight" in m.weights:
        q = m.rms_norm("self_attn.q_norm", q)
    k = m.linear("self_attn.k_proj", hidden)
    if "self_attn.k_norm.weight" in m.weights:
        k = m.rms_norm("self_attn.k_norm", k)
    v = m.linear("self_attn.v_proj", hidden)
    q, k = m.rotate(q, rotary), m.rotate(k, rotary)
    output = m.attention(q, k, v, dropout=m.spec.config.get("attention_dropout") or 0.0)
    return m.linear("self_attn.o_proj", output)


def gpt2(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of GPT-2."""
    config = m.spec.config
    residual = hidden
    hidden = m.layer_norm("ln_1", hidden)
    width = m.spec.hidden_size
    q, k, v = m.op.split(m.linear("attn.c_attn", hidden), width, width, width)
    output = m.attention(q, k, v, dropout=config["attn_pdrop"])
    output = m.linear("attn.c_proj", output)
    output = m.op.dropout(output, config["resid_pdrop"])
    del q, k, v
    hidden = m.op.add(output, residual)
    residual = hidden
    hidden = m.layer_norm("ln_2", hidden)
    feed_forward = m.linear("mlp.c_fc", hidden)
    feed_forward = gelu_new(m, feed_forward)
    feed_forward = m.linear("mlp.c_proj", feed_forward)
    feed_forward = m.op.dropout(feed_forward, config["resid_pdrop"])
    return m.op.add(residual, feed_forward)


def gelu_new(m: Modules, x: Tensor) -> Tensor:
    """The tanh approximation written out in single operations: 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))."""
    op = m.op
    return op.multiply(op.scale(x), op.shift(op.tanh(op.scale(op.add(x, op.scale(op.power(x)))))))


LAYERS: dict[str, Layer] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "gpt2": gpt2,
}
"""model_type → the forward pass of one layer."""
