"""Rehearsals: training programs, and lorabench's own harness, run on a null GPU."""
