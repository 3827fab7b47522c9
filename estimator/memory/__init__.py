"""The closed form of memory: what is held throughout, what a step adds, and what the process takes beyond it."""
