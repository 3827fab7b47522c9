"""Models: their shapes, and how to find them by name."""
