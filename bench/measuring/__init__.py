"""Measure a recipe while it trains."""
