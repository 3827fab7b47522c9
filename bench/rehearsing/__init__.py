"""Rehearsals: training programs, and lorabench's own training loop, on a null GPU."""
