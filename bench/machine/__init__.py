"""The machine that recipes run on: what it is, what it can run, and how fast it is."""
