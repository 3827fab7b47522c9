"""The check: run records held against a baseline of run records, or against the estimate.

`baseline.compare` and `estimate.compare_with_estimate` are pure functions: records in, a `findings.Comparison` out.
"""
