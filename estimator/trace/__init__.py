"""The real training step, on real or meta tensors: the only part of the estimator that uses torch."""
