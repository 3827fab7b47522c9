"""The closed form: a step's memory, computed from sizes alone, without torch.

The architectures' forward passes are written here a second time, on tensors with a size, a dtype and a lifetime, but no
contents. A small autograd of this package runs them; it frees and keeps memory as torch does. Every size is a whole
number times a product of symbols such as batch, length and rank (`sizes`). So the result is a short list of linear
forms, and the peak is their maximum.

- `sizes`: the symbols, their products, and their values;
- `ledger`: live bytes, and the peak candidates;
- `autograd`: tensors, the tape, the backward pass, checkpointing, autocast;
- `operators`: torch's operators, with the tensors that each saves and allocates;
- `modules`: linear layers and their quantisation, norms, attention;
- `adapters`: the operations that each method adds to a linear layer, and to stacked experts;
- `decoders`: the forward pass of each architecture;
- `step`: one training step of a recipe.
"""
