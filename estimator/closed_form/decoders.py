"""The forward pass of each architecture, as transformers 5.23 writes it, from token ids to the last hidden state.

Local variables are named and held as there: a tensor that a caller still holds is a tensor in memory.
"""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.closed_form.autograd import Tape, Tensor
from lorabench.estimator.closed_form.experts import sparse_mlp
from lorabench.estimator.closed_form.modules import Modules, Rotary
from lorabench.estimator.closed_form.operators import Operators
from lorabench.estimator.closed_form.sizes import S

Layer = Callable[[Modules, Tensor, Rotary | None], Tensor]


def rotary_tables(tape: Tape, op: Operators, features: int, dtype: str) -> Rotary:
    """Return cosines and sines for every position, ``features`` wide, computed in float32 and kept in ``dtype``."""
    with tape.scope("rotary tables"):
        frequencies = tape.new(S, features // 2, "float32", "buffers")
        angles = tape.new(S, features, "float32", "buffers")
        del frequencies
        cos = tape.new(S, features, "float32", "buffers")
        sin = tape.new(S, features, "float32", "buffers")
        del angles
        return op.cast(cos, dtype, "buffers"), op.cast(sin, dtype, "buffers")


def llama(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of Llama, Mistral, Qwen2, Qwen3; of Mixtral and Qwen3-MoE, which may be a mixture of experts."""
    residual = hidden
    hidden = m.rms_norm("input_layernorm", hidden)
    hidden, _ = grouped_attention(m, hidden, rotary)
    hidden = m.op.add(residual, hidden)
    residual = hidden
    hidden = m.rms_norm("post_attention_layernorm", hidden)
    hidden = sparse_mlp(m, hidden) if "mlp.gate.weight" in m.weights else m.gated_mlp(hidden)
    return m.op.add(residual, hidden)


def granite(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of Granite: Llama's, with the sublayers' outputs scaled."""
    residual = hidden
    hidden = m.rms_norm("input_layernorm", hidden)
    hidden, _ = grouped_attention(m, hidden, rotary)
    hidden = m.op.add(residual, m.op.scale(hidden))
    residual = hidden
    hidden = m.rms_norm("post_attention_layernorm", hidden)
    hidden = m.gated_mlp(hidden)
    return m.op.add(residual, m.op.scale(hidden))


def gemma(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of Gemma: Llama's, with its own norm."""
    residual = hidden
    hidden = m.gemma_norm("input_layernorm", hidden)
    hidden, _ = grouped_attention(m, hidden, rotary)
    hidden = m.op.add(residual, hidden)
    residual = hidden
    hidden = m.gemma_norm("post_attention_layernorm", hidden)
    hidden = m.gated_mlp(hidden)
    return m.op.add(residual, hidden)


def gemma2(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of Gemma 2: norms before and after each sublayer, softcapped attention where it is eager."""
    residual = hidden
    hidden = m.gemma_norm("input_layernorm", hidden)
    hidden, _ = grouped_attention(m, hidden, rotary)
    hidden = m.gemma_norm("post_attention_layernorm", hidden)
    hidden = m.op.add(residual, hidden)
    residual = hidden
    hidden = m.gemma_norm("pre_feedforward_layernorm", hidden)
    hidden = m.gated_mlp(hidden)
    hidden = m.gemma_norm("post_feedforward_layernorm", hidden)
    return m.op.add(residual, hidden)


def phi3(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of Phi-3: fused projections, and dropout on what is added."""
    dropout = m.spec.config["resid_pdrop"]
    residual = hidden
    hidden = m.rms_norm("input_layernorm", hidden)
    hidden, _ = fused_attention(m, hidden, rotary)
    hidden = m.op.add(residual, m.op.dropout(hidden, dropout))
    residual = hidden
    hidden = m.rms_norm("post_attention_layernorm", hidden)
    hidden = fused_mlp(m, hidden)
    return m.op.add(residual, m.op.dropout(hidden, dropout))


def fused_attention(m: Modules, hidden: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor | None]:
    """Rotary attention whose queries, keys and values are slices of one projection."""
    assert rotary is not None
    q_width, kv_width = m.query_width, m.key_width
    qkv = m.linear("self_attn.qkv_proj", hidden)
    with m.op.tape.scope("attention"):
        q, k, v = m.op.part(qkv, q_width), m.op.part(qkv, kv_width), m.op.part(qkv, kv_width)
    q, k = m.rotate_part(q, rotary), m.rotate_part(k, rotary)
    output, probabilities = m.attention(q, k, v, dropout=m.spec.config.get("attention_dropout") or 0.0, joined=True)
    return m.linear("self_attn.o_proj", output), probabilities


def fused_mlp(m: Modules, hidden: Tensor) -> Tensor:
    """A gated feed-forward whose gate and up projections are halves of one."""
    width = m.spec.intermediate_size
    up_states = m.linear("mlp.gate_up_proj", hidden)
    with m.op.tape.scope("feed-forward"):
        gate, up_states = m.op.split(up_states, width, width)
        up_states = m.op.multiply(up_states, m.op.activation(gate))
    return m.linear("mlp.down_proj", up_states)


def gpt_neox(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of GPT-NeoX and Pythia: attention and feed-forward side by side, or one after the other."""
    config, op = m.spec.config, m.op
    dropout = config["hidden_dropout"]
    attention, _ = neox_attention(m, m.layer_norm("input_layernorm", hidden), rotary)
    attention = op.dropout(attention, dropout)
    if config["use_parallel_residual"]:
        feed_forward = neox_mlp(m, m.layer_norm("post_attention_layernorm", hidden))
        feed_forward = op.dropout(feed_forward, dropout)
        return op.add(op.add(feed_forward, attention), hidden)
    attention = op.add(attention, hidden)
    feed_forward = neox_mlp(m, m.layer_norm("post_attention_layernorm", attention))
    feed_forward = op.dropout(feed_forward, dropout)
    return op.add(feed_forward, attention)


def neox_attention(m: Modules, hidden: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor | None]:
    """Attention with one projection for queries, keys and values, of which a part of each head is rotated."""
    assert rotary is not None
    width = m.spec.hidden_size
    qkv = m.linear("attention.query_key_value", hidden)
    with m.op.tape.scope("attention"):
        q, k, v = m.op.split(qkv, width, width, width)
    q, k = m.rotate_part(q, rotary), m.rotate_part(k, rotary)
    output, probabilities = m.attention(q, k, v, dropout=m.spec.config["attention_dropout"], joined=True)
    return m.linear("attention.dense", output), probabilities


def neox_mlp(m: Modules, hidden: Tensor) -> Tensor:
    """A plain feed-forward."""
    states = m.linear("mlp.dense_h_to_4h", hidden)
    with m.op.tape.scope("feed-forward"):
        states = m.op.activation(states)
    return m.linear("mlp.dense_4h_to_h", states)


def grouped_attention(m: Modules, hidden: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor | None]:
    """Rotary attention with separate projections, normed per head where the architecture does."""
    assert rotary is not None
    q = m.linear("self_attn.q_proj", hidden)
    if "self_attn.q_norm.weight" in m.weights:
        q = m.rms_norm("self_attn.q_norm", q, m.spec.num_attention_heads)
    k = m.linear("self_attn.k_proj", hidden)
    if "self_attn.k_norm.weight" in m.weights:
        k = m.rms_norm("self_attn.k_norm", k, m.spec.num_key_value_heads)
    v = m.linear("self_attn.v_proj", hidden)
    q, k = m.rotate(q, rotary), m.rotate(k, rotary)
    output, probabilities = m.attention(q, k, v, dropout=m.spec.config.get("attention_dropout") or 0.0)
    return m.linear("self_attn.o_proj", output), probabilities


def gpt2(m: Modules, hidden: Tensor, rotary: Rotary | None) -> Tensor:
    """One layer of GPT-2."""
    config = m.spec.config
    residual = hidden
    hidden = m.layer_norm("ln_1", hidden)
    width = m.spec.hidden_size
    q, k, v = m.op.split(m.linear("attn.c_attn", hidden), width, width, width)
    output, _ = m.attention(q, k, v, dropout=config["attn_pdrop"])
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
    with op.tape.scope("feed-forward"):
        return op.multiply(op.scale(x), op.shift(op.tanh(op.scale(op.add(x, op.scale(op.power(x)))))))


LAYERS: dict[str, Layer] = {
    "gemma": gemma,
    "gemma2": gemma2,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "granite": granite,
    "llama": llama,
    "mistral": llama,
    "mixtral": llama,
    "phi3": phi3,
    "qwen2": llama,
    "qwen3": llama,
    "qwen3_moe": llama,
}
"""model_type → the forward pass of one layer."""
