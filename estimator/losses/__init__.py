"""Losses that never make all logits at once. Each has a file with its declaration; `table` has them all."""
