"""Measure a recipe while it trains: meters, and what they measured."""
