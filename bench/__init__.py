"""Suites, workers, meters, records and their comparison."""
