"""The HTML report: templates, chart data and the vendored chart library."""
