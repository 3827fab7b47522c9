"""What people ask of the estimator: an estimate, a verdict, a plan."""
