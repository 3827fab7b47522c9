"""What fine-tuning a language model costs: estimated, traced, measured, and checked against each other."""

__version__ = "0.1.0"
