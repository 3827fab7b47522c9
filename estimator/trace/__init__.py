"""The real training step on real or meta tensors: the only part of the estimator that imports torch, inside functions."""
