"""The closed form: a step's memory worked out on sizes alone, without torch.

The architectures' forward passes are written once more here, on tensors that have a size, a dtype and a lifetime but no
contents. Run under this package's own small autograd they free and hold memory as torch does, and because every size
is a whole number times a product of symbols such as batch, length and rank (`sizes`), what comes out is a short list of
linear forms whose maximum is the peak.

- `sizes`: the symbols, their products, and what these come to;
- `ledger`: live bytes, and the peak candidates;
- `autograd`: tensors, the tape, the backward pass, checkpointing, autocast;
- `operators`: torch's operators, each with what it saves and what it allocates;
- `modules`: linear layers and their quantisation, norms, attention;
- `adapters`: what each method adds to a linear layer, and to stacked experts;
- `decoders`: the forward pass of each architecture;
- `step`: one training step of a recipe.
"""
