"""The machine that recipes run on: its environment, what it can run, and its speed."""
