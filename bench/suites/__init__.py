"""The suites that are shipped, and how a suite is read."""
