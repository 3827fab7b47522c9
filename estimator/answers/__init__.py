"""The estimator's answers: estimates, verdicts and plans."""
