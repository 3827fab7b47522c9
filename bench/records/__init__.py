"""Run records, run settings, and atomic writes of files."""
