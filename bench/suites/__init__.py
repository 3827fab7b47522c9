"""Shipped suites, and the reader of suite files."""
