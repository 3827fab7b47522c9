"""The recipe, and the modules, tensors and parameters that it has on one model."""
