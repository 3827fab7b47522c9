"""The check: compare run records with a baseline of run records, or with the estimate.

`baseline.compare` and `estimate.compare_with_estimate` are pure functions: records in, a `findings.Comparison` out.
"""
