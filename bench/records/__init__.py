"""What is kept of a run, and how files are written whole."""
