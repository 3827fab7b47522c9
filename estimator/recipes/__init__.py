"""The recipe, and what it names and counts on one model."""
