"""Train one recipe: its text, its batches, its steps."""
