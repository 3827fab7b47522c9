"""Models: their shapes, and where they are found by name."""
