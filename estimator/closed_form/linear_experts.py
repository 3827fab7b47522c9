"""Mixtures of experts before transformers 5: a loop over the experts, each a module of three linear layers.

The router decides at run time how many tokens an expert gets. Here all get the same number (`EXPERT_TOKENS`). What is
saved for backward does not depend on that, since it adds up to the same over all experts; temporaries of one expert do.
"""

from __future__ import annotations

from lorabench.estimator.closed_form.autograd import Gradients, Tensor
from lorabench.estimator.closed_form.experts import INDEX, normed_weights, top_probabilities
from lorabench.estimator.closed_form.modules import Modules
from lorabench.estimator.closed_form.sizes import EXPERT_TOKENS, TOKENS
from lorabench.estimator.models.older_experts import NAMES


def looped_mlp(m: Modules, hidden: Tensor) -> Tensor:
    """Return the weighted sum of the outputs of each token's experts, (B·S, h) (`MixtralSparseMoeBlock`)."""
    op, tape = m.op, m.op.tape
    mixture, gate, down, up = NAMES[m.spec.model_type]
    experts, chosen = m.spec.config["num_local_experts"], m.spec.config["num_experts_per_tok"]
    with tape.scope("router"):
        logits = m.linear(f"{mixture}.gate", hidden)
        routing_weights = normed_weights(m, top_probabilities(m, op.softmax(logits, "float32"), chosen))
        routing_weights = op.cast(routing_weights, hidden.dtype)
    with tape.scope("experts"):
        total = tape.new(TOKENS, hidden.features, hidden.dtype)
        expert_mask = tape.new(TOKENS, chosen * experts, "int64", name=INDEX)
        for number in range(experts):
            path = f"{mixture}.experts.{number}"
            index = tape.new(EXPERT_TOKENS, 2, "int64", name=INDEX)
            state = op.gather(hidden, EXPERT_TOKENS, hidden.features, index, 1)
            product = op.multiply(op.activation(m.linear(f"{path}.{gate}", state)), m.linear(f"{path}.{up}", state))
            output = m.linear(f"{path}.{down}", product)
            del product
            weighted = op.multiply(output, op.gather(routing_weights, EXPERT_TOKENS, 1, index, 1))
            del output
            total = _added(m, total, op.cast(weighted, hidden.dtype), index)
        del expert_mask, logits, index, state, weighted
    return total


def _added(m: Modules, total: Tensor, source: Tensor, index: Tensor) -> Tensor:
    """Return ``total``, (B·S, h), to which the rows ``source`` of one expert, (t, h), are added in place."""
    tape, features, dtype = m.op.tape, source.features, source.dtype

    def backward(g: Tensor, _: list[Tensor]) -> Gradients:
        # index_add_: self: grad; source: grad.index_select(dim, index).expand_as(source)
        return g.passed_on(), tape.new(EXPERT_TOKENS, features, dtype)

    return tape.record("index_add", (total, source), backward, (index, source), total.view)
